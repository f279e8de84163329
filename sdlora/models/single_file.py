"""A whole model in one file: written, and opened as it is, offline.

Every tensor is compared with the modules' own table, on the meta device, before any is read: a file
opens complete or is refused with the names of what is missing, of another shape, or unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdlora.architectures import FAMILIES
from sdlora.errors import ModelError
from sdlora.messages import Message, Setting
from sdlora.models.base import Conditioning, ModelFamily
from sdlora.models.checkpoint_configs import (
    FAMILY_CONFIGS,
    SCHEDULER,
    Config,
    resolution_of,
    scheduler_config,
    text_configs,
    unet_config,
    vae_config,
    vae_shapes,
)
from sdlora.models.checkpoint_facts import (
    DENOISER,
    EMA,
    TEXT_PREFIXES,
    VAE,
    CheckpointFacts,
    checkpoint_facts,
)
from sdlora.models.checkpoint_layout import (
    Layout,
    checkpoint_layout,
    from_file,
    to_file,
    vae_layout,
)
from sdlora.models.frozen_weights import FrozenLinear, freeze_linears
from sdlora.models.options import DEFAULT_OPTIONS, ModelOptions
from sdlora.models.tensor_source import TensorSource, open_tensors
from sdlora.prompt.clip_vocabulary import clip_merges, clip_vocabulary
from sdlora.settings.model import BasePrecision
from sdlora.text_files import json_value
from sdlora.workspace import STARTER_MODEL

TITLES = {
    "unet": "denoiser", "vae": "VAE", "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}  # fmt: skip
_CLASSES: dict[str, Any] = {
    "unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}  # fmt: skip
# Tensors that programs leave in files and that nothing reads: constants, training's rest, marks
_UNREAD = re.compile(
    r"(.*\.)?(position_ids|logit_scale|scaled_fp8|comfy_quant|scale_input|input_scale"
    r"|(weight_scale|scale_weight)(_2)?)|betas|alphas_cumprod.*|sqrt_.*|log_one_minus.*|posterior_.*"
    r"|lvlb_weights|first_stage_model\.loss\..*|denoiser\.sigmas|v_pred|ztsnr|global_step"
    r"|cond_stage_model\.model\.(text_projection|transformer\.resblocks\.\d+\..*)"
)


def single_file(family: ModelFamily) -> dict[str, Tensor]:
    """Return every tensor of an open family by the name it has in a single file, on the CPU.

    ModelError for a family that has no such naming here.
    """
    if family.name not in TEXT_PREFIXES:
        raise ModelError("{model} is written as a diffusers folder only", model=family.title)
    parts = {"unet": family.denoiser, "vae": family.pipeline.vae}
    parts |= {family.text_encoder_names[key]: m for key, m in family.text_encoders.items()}
    states = {part: module.state_dict() for part, module in parts.items()}
    return {
        name: to_file(places, states).detach().cpu().contiguous()
        for name, places in checkpoint_layout(family.name, parts).items()
    }


def file_facts(path: Path, options: ModelOptions = DEFAULT_OPTIONS) -> CheckpointFacts:
    """Return what a file is, with the user's choices. ModelError: it is no checkpoint."""
    with open_tensors(path) as source:
        return chosen(checkpoint_facts(source.header), options)


def chosen(facts: CheckpointFacts, options: ModelOptions) -> CheckpointFacts:
    """Return the facts with the user's choice of prediction in place of a guess."""
    if options.prediction == "auto":
        return facts
    return replace(facts, prediction=options.prediction, told_by="file")


def open_single_file(
    path: Path,
    family_class: type[ModelFamily],
    dtype: torch.dtype,
    device: torch.device,
    options: ModelOptions = DEFAULT_OPTIONS,
) -> ModelFamily:
    """Open the checkpoint at `path`, of the family that `file_facts` told, in `dtype`.

    ModelError when a part is missing, damaged or of another shape.
    """
    diffusers.logging.set_verbosity_error()
    with open_tensors(path) as source:
        facts = chosen(checkpoint_facts(source.header), options)
        parts = _load(source, _built(source, facts), facts, dtype, options.base_precision)
    parts |= other_parts(facts.family, options, dtype)
    missing = _parts_of(facts.family) - parts.keys()
    if missing:
        raise _incomplete(path, sorted(missing))
    pipeline = _pipeline(facts, parts)
    for part in parts.values():
        _name(part, path)
    family = family_class(facts.family, pipeline, device, dtype)
    if facts.family == "sd2" and facts.told_by == "family":
        _settle_prediction(family, facts)
    return family


def open_single_file_like(path: Path, like: ModelFamily) -> ModelFamily:
    """Open the checkpoint at `path`, built as `like` is, whatever its widths; in its number format.
    ModelError: it is another model's, or damaged."""
    pipeline: Any = like.pipeline
    built = {}
    with torch.device("meta"):
        for part in _parts_of(like.name):
            config = getattr(pipeline, part).config
            kind = type(getattr(pipeline, part))
            built[part] = kind.from_config(config) if part in ("unet", "vae") else kind(config)
    with open_tensors(path) as source:
        layout = checkpoint_layout(like.name, built)
        stored = _stored_names(source, layout)
        check_complete(source, layout, stored, built, like.title)
        parts = _filled(source, layout, stored, built, like.dtype)
    again = type(pipeline)(**{**pipeline.components, **parts}, **_without_checker(like.name))
    return type(like)(like.name, again, like.device, like.dtype)


def _settle_prediction(family: ModelFamily, facts: CheckpointFacts) -> None:
    """Ask a Stable Diffusion 2 of which nothing tells what it predicts: 512 px models predict the
    noise, those of 768 px v, and both have the same shapes."""
    if not predicts_noise(family):
        return
    family.pipeline.scheduler.register_to_config(prediction_type="epsilon")
    cells = resolution_of(replace(facts, prediction="epsilon")) // family.cell
    family.denoiser.register_to_config(sample_size=cells)
    family.noise = family.noise_schedule().to(family.device)


@torch.no_grad()
def predicts_noise(family: ModelFamily) -> bool:
    """Return True if the denoiser's prediction for noise alone is that noise. Predictions of v are
    nearly the negative picture there, which has nothing in common with it."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(1, family.latent_channels, 16, 16, generator=rng)
    width = family.spec.width
    empty = Conditioning({"context": torch.zeros(1, 77, width, dtype=family.dtype)})
    with family.autocast():
        given = family.predict(noise, torch.tensor([999]), empty.to(family.device))
    return bool(torch.cosine_similarity(given.float().cpu().flatten(), noise.flatten(), 0) > 0.5)


def apply_options(pipeline: Any, family: str, options: ModelOptions, dtype: torch.dtype) -> None:
    """Change an open pipeline to a user's choices. ModelError: they have no meaning for it."""
    if options.prediction != "auto":
        if "prediction_type" not in pipeline.scheduler.config:
            raise ModelError(
                "{model} has one prediction type only; leave {setting} at auto",
                model=FAMILIES[family].title, setting=Setting("prediction"),
            )  # fmt: skip
        pipeline.scheduler.register_to_config(prediction_type=options.prediction)
    for part, module in other_parts(family, options, dtype).items():
        setattr(pipeline, part, module)


def other_parts(family: str, options: ModelOptions, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Return the parts that the user takes from elsewhere. ModelError: they are not there."""
    parts: dict[str, nn.Module] = {}
    for setting, other in (("vae", options.vae), ("text_encoder", options.text_encoder)):
        if other:
            parts |= _borrowed(Path(other).expanduser(), setting, family, dtype)
    return parts


def _parts_of(family: str) -> set[str]:
    return {"unet", "vae", *TEXT_PREFIXES[family]}


def _incomplete(path: Path, missing: list[str]) -> ModelError:
    setting = "vae" if missing == ["vae"] else "text_encoder"
    return ModelError(
        "{file} holds no {parts}: it is meant to be used with another file's. Name a file or a "
        "model that has one with {setting}",
        file=path, parts=" and no ".join(TITLES[part] for part in missing),
        setting=Setting(setting),
    )  # fmt: skip


def _built(source: TensorSource, facts: CheckpointFacts) -> dict[str, nn.Module]:
    """Return the parts that the file has weights for, built on the meta device."""
    header, family = source.header, facts.family
    if family == "starter":
        configs = {part: _starter_config(part) for part in facts.components}
    else:
        configs = {**text_configs(header, family)}
        if "unet" in facts.components:
            configs["unet"] = unet_config(header, facts)
        if "vae" in facts.components:
            configs["vae"] = vae_config(_vae_of(source), family)
    return {part: _module(part, config, family) for part, config in configs.items()}


def _vae_of(source: TensorSource) -> dict[str, tuple[int, ...]]:
    shapes = vae_shapes(source.header)
    if "decoder.conv_in.weight" not in shapes:
        raise ModelError("the VAE in {file} is not complete", file=source.header.file)
    return shapes


def _starter_config(part: str) -> Config:
    config = json_value((STARTER_MODEL / part / "config.json").read_text(encoding="utf-8"))
    return dict(config)


def _module(part: str, config: Config, family: str) -> nn.Module:
    kind, values = _CLASSES[part], _public(config)
    with torch.device("meta"):
        is_text = part in TEXT_PREFIXES[family]
        module: nn.Module = kind(CLIPTextConfig(**values)) if is_text else kind(**values)
        return module


def _public(config: Config) -> Config:
    hidden = ("architectures", "model_type", "dtype", "transformers_version")
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in hidden}


def _load(
    source: TensorSource, modules: Mapping[str, nn.Module], facts: CheckpointFacts,
    dtype: torch.dtype, base_precision: BasePrecision,
) -> dict[str, nn.Module]:  # fmt: skip
    """Fill the modules with the file's weights, once all of them are known to be there; the
    denoiser's as small as asked, each as it is read."""
    layout, stored = _checked_layout(source, modules, facts)
    if "unet" in modules:
        freeze_linears(modules["unet"].to(dtype), base_precision)
    return _filled(source, layout, stored, modules, dtype)


def checked_names(source: TensorSource, facts: CheckpointFacts) -> dict[str, str]:
    """Return a checkpoint's tensors, by name -> the file's spelling of it. ModelError: a part of it
    is not complete, or of another shape; nothing is loaded."""
    return _checked_layout(source, _built(source, facts), facts)[1]


def _checked_layout(
    source: TensorSource, modules: Mapping[str, nn.Module], facts: CheckpointFacts
) -> tuple[Layout, dict[str, str]]:
    layout = checkpoint_layout(facts.family, modules)
    stored = _stored_names(source, layout)
    check_complete(source, layout, stored, modules, FAMILIES[facts.family].title)
    return layout, stored


def _filled(
    source: TensorSource, layout: Layout, stored: Mapping[str, str],
    modules: Mapping[str, nn.Module], dtype: torch.dtype,
) -> dict[str, nn.Module]:  # fmt: skip
    states: dict[str, dict[str, Tensor]] = {part: {} for part in modules}
    for name, places in layout.items():
        tensor = source.read(stored[name], dtype)
        for place, share in from_file(places, tensor):
            states[place.part] |= _state_of(modules[place.part], place.name, share)
    for part, module in modules.items():
        module.load_state_dict(states[part], assign=True)
        _place_buffers(module)
        module.requires_grad_(False).eval()
    return dict(modules)


def _state_of(module: nn.Module, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return what of a module's state dict a tensor of this name gives."""
    path, _, parameter = name.rpartition(".")
    layer = module.get_submodule(path)
    if parameter == "weight" and isinstance(layer, FrozenLinear):
        return {f"{path}.{role}": held for role, held in layer.state_of(tensor).items()}
    return {name: tensor.contiguous()}


def _place_buffers(module: nn.Module) -> None:
    """Make the constants that no file holds: the numbers of a text encoder's positions."""
    for path, owner in module.named_modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if buffer.is_meta and name == "position_ids":
                owner.register_buffer(
                    name, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False
                )
            elif buffer.is_meta:
                raise ModelError("the constant {name} of a model is not known", name=path)


def _stored_names(source: TensorSource, layout: Layout) -> dict[str, str]:
    """Return name of the layout -> the file's spelling of it, of those that are in the file."""
    names = source.header.shapes
    has_prefix = any(name.startswith(DENOISER) for name in names)
    stored = {}
    for name in layout:
        spellings = [name, name.replace(".transformer.text_model.", ".transformer.")]
        if not has_prefix:
            spellings.append(name.removeprefix(DENOISER))
        if spelling := next((s for s in spellings if s in names), ""):
            stored[name] = spelling
    return stored


def check_complete(
    source: TensorSource, layout: Layout, stored: Mapping[str, str],
    modules: Mapping[str, nn.Module],
    title: str,
) -> None:  # fmt: skip
    """Raise ModelError when tensors are missing, have another shape, or are too many."""
    states = {part: module.state_dict() for part, module in modules.items()}
    shapes = source.header.shapes
    missing, misshapen = [], []
    for name, places in layout.items():
        expected = tuple(to_file(places, states).shape)
        if name not in stored:
            missing.append(name)
        elif _squeezed(shapes[stored[name]]) != _squeezed(expected):
            misshapen.append(name)
    known = set(stored.values())
    extra = [
        name for name in shapes
        if name not in known and not name.startswith(EMA) and not _UNREAD.fullmatch(name)
        and name.startswith((DENOISER, VAE, "cond_stage_model.", "conditioner."))
    ]  # fmt: skip
    problems = [
        *_counted("{count} tensors of its {part} are missing, such as {key!r}", missing),
        *_counted("{count} tensors of its {part} have another shape, such as {key!r}", misshapen),
        *_counted("{count} tensors of its {part} are unknown, such as {key!r}", extra),
    ]
    if problems:
        raise ModelError(
            "{file} cannot be used as {family}: {problems}", file=source.header.file,
            family=title, problems=problems,
        )  # fmt: skip


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def _counted(template: str, names: Iterable[str]) -> list[Message]:
    by_part: dict[str, list[str]] = {}
    for name in names:
        by_part.setdefault(_title_of(name), []).append(name)
    return [
        Message(template, count=len(group), part=part, key=min(group))
        for part, group in by_part.items()
    ]


def _title_of(name: str) -> str:
    if name.startswith(VAE):
        return TITLES["vae"]
    if name.startswith("conditioner.embedders.1"):
        return TITLES["text_encoder_2"]
    is_text = name.startswith(("cond_stage_model.", "conditioner."))
    return TITLES["text_encoder" if is_text else "unet"]


def _borrowed(path: Path, setting: str, family: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Return the VAE or the text encoders of another file or diffusers folder."""
    if path.is_dir():
        return _from_folder(path, setting, family, dtype)
    if setting == "vae":
        return {"vae": open_vae(path, family, dtype)}
    with open_tensors(path) as source:
        facts = checkpoint_facts(source.header)
        configs = text_configs(source.header, family) if facts.family == family else {}
        if not configs:
            raise ModelError(
                "{file} holds no text encoder of {family}", file=path, family=FAMILIES[family].title
            )
        modules = {part: _module(part, config, family) for part, config in configs.items()}
        return _load_some(source, modules, family, dtype)


def _load_some(
    source: TensorSource, modules: Mapping[str, nn.Module], family: str, dtype: torch.dtype
) -> dict[str, nn.Module]:
    layout = checkpoint_layout(family, modules)
    stored = _stored_names(source, layout)
    if missing := layout.keys() - stored.keys():
        raise ModelError(
            "{file} is not complete: {key!r} is missing", file=source.header.file, key=min(missing)
        )
    return _filled(source, layout, stored, modules, dtype)


def _from_folder(
    folder: Path, setting: str, family: str, dtype: torch.dtype
) -> dict[str, nn.Module]:
    parts = ["vae"] if setting == "vae" else [*TEXT_PREFIXES[family]]
    try:
        return {
            part: _CLASSES[part].from_pretrained(
                folder / part if (folder / part).is_dir() else folder, dtype=dtype,
                local_files_only=True, use_safetensors=True,
            )
            for part in parts
        }  # fmt: skip
    except (OSError, ValueError) as error:
        raise ModelError(
            "the {part} in {folder} cannot be opened: {why}", folder=folder,
            part=TITLES[parts[0]], why=error,
        ) from None  # fmt: skip


def open_vae(path: Path, family: str, dtype: torch.dtype) -> nn.Module:
    """Open the VAE in a file of its own or in a checkpoint. ModelError: it holds none."""
    with open_tensors(path) as source:
        module = _module("vae", vae_config(_vae_of(source), family), family)
        prefix = VAE if any(name.startswith(VAE) for name in source.header.shapes) else ""
        layout: Layout = dict(vae_layout(module.state_dict(), prefix))
        stored = {name: name for name in layout if name in source.header}
        if missing := layout.keys() - stored.keys():
            raise ModelError(
                "the VAE in {file} is not complete: {key!r} is missing",
                file=path, key=min(missing),
            )  # fmt: skip
        return _filled(source, layout, stored, {"vae": module}, dtype)["vae"]


def _pipeline(facts: CheckpointFacts, parts: Mapping[str, nn.Module]) -> Any:
    return single_file_pipeline(facts.family, parts, scheduler_config(facts))


def single_file_pipeline(
    family: str, parts: Mapping[str, nn.Module], noise: Config = SCHEDULER
) -> Any:
    """Return the stock pipeline of a family's parts, with tokenizers of CLIP's vocabulary."""
    scheduler = DDIMScheduler.from_config(noise)
    kind = getattr(diffusers, FAMILIES[family].pipeline_class)
    none = {} if family == "sdxl" else {"safety_checker": None, "feature_extractor": None}
    more = {**none, **_without_checker(family)}
    return kind(**parts, **_tokenizers(family), scheduler=scheduler, **more)


def _without_checker(family: str) -> dict[str, Any]:
    return {"add_watermarker": False} if family == "sdxl" else {"requires_safety_checker": False}


def _tokenizers(family: str) -> dict[str, CLIPTokenizer]:
    if family == "starter":
        return {"tokenizer": CLIPTokenizer.from_pretrained(STARTER_MODEL / "tokenizer")}
    names = ("tokenizer", "tokenizer_2")
    return dict(zip(names, map(clip_tokenizer, FAMILY_CONFIGS[family].pad_tokens), strict=False))


def clip_tokenizer(pad_token: str) -> CLIPTokenizer:
    """Return CLIP's tokenizer, equal to the published one."""
    return CLIPTokenizer(
        vocab=clip_vocabulary(), merges=clip_merges(), model_max_length=77, pad_token=pad_token
    )


def _name(part: Any, path: Path) -> None:
    if hasattr(part, "register_to_config"):
        part.register_to_config(_name_or_path=str(path))
    else:
        part.config._name_or_path = str(path)
