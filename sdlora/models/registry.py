"""The model families, and how a model is recognised and opened.

Recognising reads two small JSON files and loads no torch. A model's index names classes to be
imported: only those of the table below pass, so a hostile one is refused before anything is loaded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlora.architectures import BASES
from sdlora.errors import ModelError
from sdlora.text_files import json_value
from sdlora.workspace import STARTER_MODEL, is_built_as

if TYPE_CHECKING:
    import torch

    from sdlora.models.base import Family

INDEX = "model_index.json"
# Family -> the pipeline that its index names
FAMILIES = {
    "starter": "StableDiffusionPipeline",
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
}
# Part of a model -> the one class it may be of
_PARTS = {
    "unet": r"diffusers\.UNet2DConditionModel",
    "vae": r"diffusers\.AutoencoderKL",
    "scheduler": r"diffusers\.\w+Scheduler",
    "text_encoder": r"transformers\.CLIPTextModel",
    "text_encoder_2": r"transformers\.CLIPTextModelWithProjection",
    "tokenizer": r"transformers\.CLIPTokenizer(Fast)?",
    "tokenizer_2": r"transformers\.CLIPTokenizer(Fast)?",
}
_NEVER_LOADED = {"safety_checker", "feature_extractor", "image_encoder"}


def detect_family(path: str | Path) -> str:
    """The family of the diffusers folder `path`, a key of FAMILIES. ModelError when it is none."""
    folder = Path(path)
    pipeline = _checked_index(folder / INDEX)
    _check_parts(folder)
    if is_built_as(folder, STARTER_MODEL):
        return "starter"
    fitting = [name for name, its in FAMILIES.items() if its == pipeline and name != "starter"]
    if len(fitting) == 1:
        return fitting[0]
    width = _read(folder / "unet" / "config.json").get("cross_attention_dim")
    for name in fitting:
        if BASES[name].width == width:
            return name
    # an unusual width: what sets the two apart besides is that SD 2 predicts v
    prediction = _read(folder / "scheduler" / "scheduler_config.json").get("prediction_type")
    return "sd2" if prediction == "v_prediction" else "sd1"


def open_family(source: str, dtype: torch.dtype, device: torch.device) -> Family:
    """Open a diffusers folder or a hub id. ModelError: it is not there, or not one of ours."""
    from sdlora.models import hub
    from sdlora.models.sd import StableDiffusion
    from sdlora.models.sdxl import StableDiffusionXL

    classes = {kind.pipeline_class.__name__: kind for kind in (StableDiffusion, StableDiffusionXL)}
    folder = Path(source).expanduser()
    if folder.is_file():
        raise ModelError(
            "{file} is a single file; a diffusers folder or a hub id can be opened", file=folder
        )
    if not folder.is_dir():
        index = hub.index_of(source, INDEX)
        kind = classes[_checked_index(index)]
        folder = hub.whole_model(source, index, kind.pipeline_class, kind.no_parts)
    name = detect_family(folder)
    return classes[FAMILIES[name]].open(name, folder, dtype, device)


def _checked_index(path: Path) -> str:
    """The pipeline an index names, once everything it names is known to be harmless."""
    index = _read(path)
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in FAMILIES.values():
        known = " and ".join(sorted(set(FAMILIES.values())))
        raise ModelError(
            "{folder} is a {kind} model; {known} are known",
            folder=path.parent, kind=str(pipeline)[:80], known=known,
        )  # fmt: skip
    for part, says in index.items():
        if part.startswith("_") or not isinstance(says, list) or part in _NEVER_LOADED:
            continue
        kind = ".".join(str(word) for word in says)
        if not re.fullmatch(_PARTS.get(part, ""), kind):
            raise ModelError(
                "{file} names {kind!r} as its {part}; that is not loaded",
                file=path, kind=kind[:80], part=part[:80],
            )  # fmt: skip
    return pipeline


def _check_parts(folder: Path) -> None:
    """Nothing is missing: transformers would make an empty tokenizer in place of a lost one."""
    for part in _PARTS.keys() & _read(folder / INDEX).keys():
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
