"""Parts of a checkpoint as modules: built from its shapes, compared whole, then filled.

Every tensor is compared with the modules' own table, on the meta device, before any is read: a part
is complete or refused with the names of what is missing, of another shape, or unknown.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdlora.architectures import FAMILIES
from sdlora.errors import ModelError
from sdlora.messages import Message
from sdlora.models.checkpoint_configs import Config, text_configs, unet_config, vae_config
from sdlora.models.checkpoint_facts import DENOISER, EMA, TEXT_PREFIXES, VAE, CheckpointFacts
from sdlora.models.checkpoint_layout import Layout, checkpoint_layout, from_file, to_file
from sdlora.models.frozen_weights import FrozenLinear, freeze_linears
from sdlora.models.tensor_source import TensorSource
from sdlora.settings.model import BasePrecision
from sdlora.text_files import json_value
from sdlora.workspace import STARTER_MODEL

PART_TITLES = {
    "unet": "denoiser", "vae": "VAE", "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}  # fmt: skip
PART_CLASSES: dict[str, Any] = {
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


def parts_of(family: str) -> set[str]:
    """Return the names of a family's parts, those of its pipeline."""
    return {"unet", "vae", *TEXT_PREFIXES[family]}


def build_parts(
    source: TensorSource, facts: CheckpointFacts, without: Collection[str] = ()
) -> dict[str, nn.Module]:
    """Build the parts that a file has weights for, but those `without`, on the meta device."""
    header, family = source.header, facts.family
    part_names = facts.components - set(without)
    if family == "starter":
        configs = {part: _starter_config(part) for part in part_names}
    else:
        texts = text_configs(header, family)
        configs = {part: config for part, config in texts.items() if part in part_names}
        configs["unet"] = unet_config(header, facts)
        if "vae" in part_names:
            configs["vae"] = vae_config(header, family)
    return {part: build_part(part, config) for part, config in configs.items()}


def _starter_config(part: str) -> Config:
    config = json_value((STARTER_MODEL / part / "config.json").read_text(encoding="utf-8"))
    return dict(config)


def build_part(part: str, config: Config) -> nn.Module:
    """Build a part on the meta device."""
    kind, values = PART_CLASSES[part], _public(config)
    is_text = part.startswith("text_encoder")
    with torch.device("meta"):
        module: nn.Module = kind(CLIPTextConfig(**values)) if is_text else kind(**values)
        return module


def _public(config: Config) -> Config:
    hidden = ("architectures", "model_type", "dtype", "transformers_version")
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in hidden}


def load_parts(
    source: TensorSource, modules: Mapping[str, nn.Module], family: str, dtype: torch.dtype,
    base_precision: BasePrecision = "full",
) -> dict[str, nn.Module]:  # fmt: skip
    """Fill the modules with the file's weights, once all of them are known to be there; the
    denoiser's as small as asked, each as it is read. ModelError: a part is not complete."""
    layout, stored = checked_layout(source, modules, family)
    if "unet" in modules:
        freeze_linears(modules["unet"].to(dtype), base_precision)
    return _filled(source, layout, stored, modules, dtype)


def checked_layout(
    source: TensorSource, modules: Mapping[str, nn.Module], family: str
) -> tuple[Layout, dict[str, str]]:
    """Return (the layout of the modules' parts, name in it -> the file's spelling). ModelError: a
    part is not complete, of another shape, or more than it should be; nothing is loaded."""
    layout = checkpoint_layout(family, modules)
    stored = _stored_names(source, layout)
    _check_complete(source, layout, stored, modules, family)
    return layout, stored


def _stored_names(source: TensorSource, layout: Layout) -> dict[str, str]:
    """Return name of the layout -> the file's spelling of it, of those that are in the file."""
    names = source.header.shapes
    absent = [p for p in (DENOISER, VAE) if not any(name.startswith(p) for name in names)]
    stored = {}
    for name, places in layout.items():
        spellings = [name, name.replace(".transformer.text_model.", ".transformer.")]
        # a file of one part: without its prefix, and a VAE's also with diffusers' names
        spellings += [name.removeprefix(p) for p in absent if name.startswith(p)]
        spellings += [places[0].name] if VAE in absent and name.startswith(VAE) else []
        if spelling := next((s for s in spellings if s in names), ""):
            stored[name] = spelling
    return stored


def _check_complete(
    source: TensorSource, layout: Layout, stored: Mapping[str, str],
    modules: Mapping[str, nn.Module], family: str,
) -> None:  # fmt: skip
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
        and _part_at(name) in modules
    ]  # fmt: skip
    problems = [
        *_counted("{count} tensors of its {part} are missing, such as {key!r}", missing),
        *_counted("{count} tensors of its {part} have another shape, such as {key!r}", misshapen),
        *_counted("{count} tensors of its {part} are unknown, such as {key!r}", extra),
    ]
    if problems:
        raise ModelError(
            "{file} cannot be used as {family}: {problems}", file=source.header.file,
            family=FAMILIES[family].title, problems=problems,
        )  # fmt: skip


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def _counted(template: str, names: Iterable[str]) -> list[Message]:
    by_part: dict[str, list[str]] = {}
    for name in names:
        by_part.setdefault(PART_TITLES[_part_at(name)], []).append(name)
    return [
        Message(template, count=len(group), part=part, key=min(group))
        for part, group in by_part.items()
    ]


def _part_at(name: str) -> str:
    """Return the part that a name in a file begins with the prefix of; '' for none."""
    if name.startswith(DENOISER):
        return "unet"
    if name.startswith(VAE):
        return "vae"
    if name.startswith("conditioner.embedders.1"):
        return "text_encoder_2"
    return "text_encoder" if name.startswith(("cond_stage_model.", "conditioner.")) else ""


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
