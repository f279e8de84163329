"""VAE and text encoders that a user takes from elsewhere, in place of a model's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdlora.architectures import FAMILIES
from sdlora.errors import ModelError
from sdlora.messages import Setting
from sdlora.models.checkpoint_configs import FAMILY_CONFIGS, text_configs, vae_config
from sdlora.models.checkpoint_facts import TEXT_PREFIXES
from sdlora.models.checkpoint_parts import PART_CLASSES, PART_TITLES, build_part, load_parts
from sdlora.models.options import ModelOptions
from sdlora.models.tensor_source import open_tensors


def chosen_parts(family: str, options: ModelOptions) -> dict[str, list[str]]:
    """Return file or folder -> the parts of a model that the user takes from there. ModelError: the
    family's parts cannot be exchanged."""
    texts = [*TEXT_PREFIXES.get(family, ())]
    chosen = {"vae": (options.vae, ["vae"]), "text_encoder": (options.text_encoder, texts)}
    for setting, (place, _) in chosen.items():
        if place and family not in FAMILY_CONFIGS:
            raise ModelError(
                "{model} is used with its own parts; {setting} is for Stable Diffusion 1, 2 and XL",
                model=FAMILIES[family].title, setting=Setting(setting),
            )  # fmt: skip
    parts: dict[str, list[str]] = {}
    for place, names in chosen.values():
        if place:
            parts.setdefault(place, []).extend(names)
    return parts


def load_chosen_parts(
    family: str, options: ModelOptions, dtype: torch.dtype
) -> dict[str, nn.Module]:
    """Load the parts that the user takes from elsewhere. ModelError: they are not there."""
    loaded: dict[str, nn.Module] = {}
    for place, parts in chosen_parts(family, options).items():
        path = Path(place).expanduser()
        load = _from_folder if path.is_dir() else _from_file
        loaded |= load(path, parts, family, dtype)
    return loaded


def _from_file(
    path: Path, parts: list[str], family: str, dtype: torch.dtype
) -> dict[str, nn.Module]:
    with open_tensors(path) as source:
        configs = {
            part: config for part, config in text_configs(source.header, family).items()
            if part in parts
        }  # fmt: skip
        if "vae" in parts:
            configs["vae"] = vae_config(source.header, family)
        if missing := sorted(set(parts) - configs.keys()):
            raise ModelError(
                "{file} holds no {part} of {family}", file=path, part=PART_TITLES[missing[0]],
                family=FAMILIES[family].title,
            )  # fmt: skip
        modules = {part: build_part(part, config) for part, config in configs.items()}
        return load_parts(source, modules, family, dtype)


def _from_folder(
    folder: Path, parts: list[str], family: str, dtype: torch.dtype
) -> dict[str, nn.Module]:
    try:
        return {
            part: PART_CLASSES[part].from_pretrained(
                folder / part if (folder / part).is_dir() else folder, dtype=dtype,
                local_files_only=True, use_safetensors=True,
            )
            for part in parts
        }  # fmt: skip
    except (OSError, ValueError) as error:
        raise ModelError(
            "the {part} in {folder} cannot be opened: {why}", folder=folder,
            part=PART_TITLES[parts[0]], why=error,
        ) from None  # fmt: skip


def check_fit(parts: Mapping[str, Any], family: str) -> None:
    """Raise ModelError when parts do not fit together, as those of two families do not."""
    unet, title = parts["unet"].config, FAMILIES[family].title
    channels = parts["vae"].config.latent_channels
    if channels != unet.out_channels:
        raise ModelError(
            "the VAE makes latents of {count} channels, and {model} has {expected}: it is another "
            "family's",
            count=channels, model=title, expected=unet.out_channels,
        )  # fmt: skip
    width = sum(parts[part].config.hidden_size for part in TEXT_PREFIXES[family])
    if width != unet.cross_attention_dim:
        raise ModelError(
            "the text encoder makes texts of width {width}, and {model} reads {expected}: it is "
            "another family's",
            width=width, model=title, expected=unet.cross_attention_dim,
        )  # fmt: skip
