"""Recognising and opening a model of a known family.

Recognising reads two small JSON files and loads no torch. A model's index names classes to be
imported: only those of the families' rows pass, so a hostile one is refused before it is loaded.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlora.architectures import FAMILIES
from sdlora.errors import ModelError
from sdlora.models.checkpoint_configs import resolution_of
from sdlora.models.checkpoint_facts import checkpoint_facts, denoiser_shapes, number_format
from sdlora.models.checkpoint_header import Shape, read_checkpoint_header
from sdlora.models.gguf_header import needs_gguf
from sdlora.models.options import DEFAULT_OPTIONS, ModelOptions
from sdlora.prompt import clip_vocabulary
from sdlora.text_files import json_value
from sdlora.upscalers.files import default_upscaler
from sdlora.workspace import HUB_ID, STARTER_MODEL

if TYPE_CHECKING:
    import torch

    from sdlora.models.base import ModelFamily

INDEX = "model_index.json"
_NEVER_LOADED = {"safety_checker", "feature_extractor", "image_encoder"}


def detect_family(path: str | Path) -> str:
    """The family of a diffusers folder or a single file, a key of FAMILIES. ModelError when it is
    none."""
    folder = Path(path)
    if folder.is_file():
        return checkpoint_facts(read_checkpoint_header(folder)).family
    pipeline = _checked_index(folder / INDEX)
    _check_parts(folder, pipeline)
    if is_built_as(folder, STARTER_MODEL):
        return "starter"
    names = [name for name in _families_of(pipeline) if name != "starter"]
    if len(names) == 1:
        return names[0]
    width = _read(folder / "unet" / "config.json").get("cross_attention_dim")
    for name in names:
        if FAMILIES[name].width == width:
            return name
    # an unusual width: what sets the two apart besides is that SD 2 predicts v
    prediction = _read(folder / "scheduler" / "scheduler_config.json").get("prediction_type")
    return "sd2" if prediction == "v_prediction" else "sd1"


@dataclass(frozen=True)
class ModelFacts:
    """A model's family, the resolution and the text vocabulary that it was made for, and the name
    of the upscaler that comes with it."""

    family: str
    resolution: int  # pixels along a side
    vocabulary: int  # tokens
    upscaler: str = ""  # '': none


def model_facts(path: str | Path) -> ModelFacts:
    """Read the facts of a diffusers folder or a single file, unopened. ModelError: it is of no
    known family."""
    folder, family = Path(path), detect_family(path)
    if folder.is_file():
        return _file_facts(folder)
    spec = FAMILIES[family]
    vae = _read(folder / "vae" / "config.json")
    cells = spec.sample_size or _read(folder / spec.denoiser / "config.json").get("sample_size")
    vocabulary = _read(folder / "text_encoder" / "config.json").get("vocab_size", 0)
    try:
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        upscaler = default_upscaler(folder)
        name = upscaler.stem if upscaler else ""
        return ModelFacts(family, int(cells * scale), int(vocabulary), name)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            "the configuration of the model in {folder} is damaged: {why}", folder=folder, why=error
        ) from None


def _file_facts(file: Path) -> ModelFacts:
    facts = checkpoint_facts(read_checkpoint_header(file))
    if facts.family == "starter":
        return model_facts(STARTER_MODEL)
    return ModelFacts(facts.family, resolution_of(facts), clip_vocabulary.SIZE)


def tensor_shapes(path: str | Path) -> dict[str, Shape]:
    """Read the shapes of the denoiser's tensors from a diffusers folder, in one precision where it
    has two, or a single file. ModelError: it is damaged, or of no known family."""
    folder = Path(path)
    if folder.is_file():
        return denoiser_shapes(read_checkpoint_header(folder))
    part = FAMILIES[detect_family(folder)].denoiser
    files = sorted((folder / part).glob("*.safetensors"))
    whole = [file for file in files if ".fp16" not in file.name]
    headers = (read_checkpoint_header(file) for file in whole or files)
    return {name: shape for header in headers for name, shape in header.shapes.items()}


def is_for_few_steps(source: str | Path) -> bool:
    """Return True for a single file whose name says that it is distilled for few steps."""
    file = Path(source)
    return file.is_file() and checkpoint_facts(read_checkpoint_header(file)).few_steps


def check_packages(source: str | Path) -> None:
    """ModelError: a file's weights are read by a package that is not installed."""
    file = Path(source)
    header = read_checkpoint_header(file) if file.is_file() else None
    if header and header.is_in_blocks and find_spec("gguf") is None:
        raise needs_gguf(file, number_format(header))


def preset_family(source: str | Path) -> str:
    """Return the family whose presets fit a model, as far as its folder tells without being opened;
    'any': unknown."""
    folder = Path(source)
    if is_built_as(folder, STARTER_MODEL):
        return "starter"
    try:
        if folder.is_file():
            name = detect_family(folder)
            return _child(name, folder) or FAMILIES[name].presets or name
        pipeline = _checked_index(folder / INDEX)
    except ModelError:
        return "any"
    name = next(name for name in _families_of(pipeline) if name != "starter")
    return _child(name, folder) or FAMILIES[name].presets or name


# Presets of models made from Stable Diffusion XL -> words of their names, the ones that they go by
_CHILDREN = {
    "pony": re.compile(r"pony|pdxl", re.IGNORECASE),
    "illustrious": re.compile(r"illustrious|noob|(?<![a-z])(ilxl|il|wai)(?![a-z])", re.IGNORECASE),
}


def _child(family: str, path: Path) -> str:
    """Return the presets of a child of SDXL, told by the model's name; '' for none. Its weights
    are shaped as its parent's."""
    if family != "sdxl":
        return ""
    return next((child for child, pattern in _CHILDREN.items() if pattern.search(path.stem)), "")


def is_built_as(folder: Path, model: Path) -> bool:
    """Return True if a diffusers folder has a UNet of the same configuration as `model`, whatever
    its weights: so the same LoRAs fit it, as they fit a model that LoRAs were fused into."""
    config, expected = (_unet_config(path) for path in (folder, model))
    return bool(expected) and all(config.get(key) == value for key, value in expected.items())


def _unet_config(folder: Path) -> dict[str, object]:
    try:
        config = json_value((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    # with an underscore: who wrote it, and where it lay
    table = config if isinstance(config, dict) else {}
    return {key: value for key, value in table.items() if not key.startswith("_")}


def open_family(
    source: str,
    dtype: torch.dtype,
    device: torch.device,
    options: ModelOptions = DEFAULT_OPTIONS,
) -> ModelFamily:
    """Open a single file, a diffusers folder or a hub id. ModelError: it is not there, or of no
    known family."""
    from sdlora.models import hub, single_file
    from sdlora.models.frozen_weights import check_base_precision

    check_base_precision(options.base_precision, device)
    folder = Path(source).expanduser()
    if folder.is_file():
        family_class = _class_of(detect_family(folder))
        family = single_file.open_single_file(folder, family_class, dtype, device, options)
        if family.name == "starter":
            family.upscaler = default_upscaler(STARTER_MODEL)
        return family
    if not folder.is_dir():
        if not HUB_ID.fullmatch(source):
            raise ModelError(
                "{model!r} is neither in models/, nor a folder, nor an id such as {example}",
                model=source[:80], example="owner/name",
            )  # fmt: skip
        index = hub.index_of(source, INDEX)
        pipeline = _checked_index(index)
        skipped = _class_of(_families_of(pipeline)[0]).skip_components
        folder = hub.whole_model(source, index, pipeline, skipped)
    name = detect_family(folder)
    family_class = _class_of(name)
    loaded = family_class.load_pipeline(name, folder, dtype, options.base_precision)
    single_file.apply_options(loaded, name, options, dtype)
    family = family_class(name, loaded, device, dtype, options.stream_blocks)
    family.upscaler = default_upscaler(folder)
    return family


def _class_of(name: str) -> type[ModelFamily]:
    module, family_class, _ = FAMILIES[name].classes
    family: type[ModelFamily] = getattr(
        importlib.import_module(f"sdlora.models.{module}"), family_class
    )
    return family


def _families_of(pipeline: str) -> list[str]:
    """Return the families that a pipeline's class is of."""
    return [name for name, spec in FAMILIES.items() if spec.pipeline_class == pipeline]


def _checked_index(path: Path) -> str:
    """Return the pipeline that an index names, once all that it names is known to be harmless."""
    index = _read(path)
    pipeline = index.get("_class_name")
    families = _families_of(pipeline) if isinstance(pipeline, str) else []
    if not isinstance(pipeline, str) or not families:
        known = sorted({spec.pipeline_class for spec in FAMILIES.values()})
        raise ModelError(
            "{folder} is a {kind} model; {known} are known",
            folder=path.parent, kind=str(pipeline)[:80], known=", ".join(known),
        )  # fmt: skip
    spec = FAMILIES[families[0]]
    for part, names in index.items():
        if part.startswith("_") or not isinstance(names, list) or part in _NEVER_LOADED:
            continue
        if names == [None, None] and part in spec.optional_components:
            continue
        kind = ".".join(str(name) for name in names)
        if not re.fullmatch(spec.components.get(part, ""), kind):
            raise ModelError(
                "{file} names {kind!r} as its {part}; that is not loaded",
                file=path, kind=kind[:80], part=part[:80],
            )  # fmt: skip
    return pipeline


def _check_parts(folder: Path, pipeline: str) -> None:
    """Check that no part is missing: transformers would make an empty tokenizer in place of a lost
    one."""
    index = _read(folder / INDEX)
    components = FAMILIES[_families_of(pipeline)[0]].components
    for part in components.keys() & index.keys():
        if index[part] == [None, None]:
            continue
        files = ("tokenizer.json", "vocab.json") if part.startswith("tokenizer") else ("",)
        if not any((folder / part / file).exists() for file in files):
            raise ModelError(
                "the model in {folder} is not complete: its {part} is not there",
                folder=folder, part=part,
            )  # fmt: skip
    config = folder / "unet" / "config.json"
    if config.is_file() and _read(config).get("time_cond_proj_dim") is not None:
        raise ModelError(
            "the model in {folder} has its guidance distilled into it (LCM); such models are not "
            "supported",
            folder=folder,
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        table = json_value(path.read_text(encoding="utf-8"))
    except OSError:
        raise ModelError(
            "{folder} is not a diffusers model: {file} is not there",
            folder=path.parent, file=path.name,
        ) from None  # fmt: skip
    except ValueError as error:
        raise ModelError("{file} is damaged: {why}", file=path, why=error) from None
    if not isinstance(table, dict):
        raise ModelError("{file} is damaged: it is not a table", file=path)
    return table
