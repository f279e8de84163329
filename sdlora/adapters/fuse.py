"""Fuse LoRAs into a base model's weights, which are saved as a model of their own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sdlora.adapters import match_layers
from sdlora.adapters.matching import ParameterPath
from sdlora.errors import LoraFileError, SettingsError
from sdlora.files import write_atomically
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.lora.format.layer_groups import Losses
from sdlora.lora.tools.deltas import BaseWeight
from sdlora.models.base import ModelFamily
from sdlora.models.registry import INDEX
from sdlora.models.single_file import single_file


@torch.no_grad()
def fuse(
    family: ModelFamily, loras: Sequence[tuple[LoraFile, float]], dtype: torch.dtype
) -> tuple[Losses, list[str]]:
    """W = cast(W.float() + sum of weight · delta(W)), cast once, to `dtype`, and for good.

    What the cast misses of the sum, and the layers that the model does not have. LoraFileError when
    a file does not fit, or the sum overflows: the family is to be thrown away then.
    """
    terms: dict[ParameterPath, list[tuple[Adapter, float]]] = {}
    unmatched: list[str] = []
    for file, weight in loras:
        match = match_layers(file, family)
        unmatched += match.unmatched
        for place, adapter in match.places.items():
            terms.setdefault(place, []).append((adapter, weight))
    losses = Losses()
    for (part, path, parameter), changes in terms.items():
        value = getattr(family.components[part].get_submodule(path), parameter)
        delta = torch.zeros_like(value, dtype=torch.float32)
        for adapter, weight in changes:
            delta += weight * adapter.delta(value, parameter)
        fused = (value.float() + delta).to(dtype)
        if not bool(fused.isfinite().all()):
            raise LoraFileError(
                "the sum overflows {precision} in {layer}; lower the weights",
                precision=dtype,
                layer=path,
            )
        missed = fused.float() - value.float() - delta
        name = f"lora_{'unet' if part == 'denoiser' else part}_{path.replace('.', '_')}"
        losses.add(name, float(delta.norm()), float(missed.norm()))
        value.copy_(fused)
    family.to_dtype(dtype)
    return losses, unmatched


def pristine_weights(family: ModelFamily) -> BaseWeight:
    """The family's own weights by layer name, for tools that read kinds which build on them."""

    def pristine(name: str) -> Tensor:
        slots = family.vocabulary.get(name)
        if not slots or slots[0].rows:
            raise LoraFileError(
                "the model, {model}, has no layer {layer!r}", model=family.title, layer=name[:80]
            )
        weight: Tensor = family.components[slots[0].part].get_submodule(slots[0].path).weight
        return weight

    return pristine


def save_model(
    family: ModelFamily, path: Path, overwrite: bool, metadata: Mapping[str, str]
) -> Path:
    """Save as one file where `path` ends in .safetensors, with this metadata; else as a
    diffusers folder. Complete or not at all. SettingsError when it exists, see `overwrite`."""
    if path.exists() and not overwrite:
        raise SettingsError("{file} exists; choose another --output or add --overwrite", file=path)
    if path.suffix == ".safetensors":
        tensors = single_file(family)
        return write_atomically(
            path, lambda file: save_file(tensors, file, {**metadata, "format": "pt"})
        )
    if path.exists() and not (path / INDEX).is_file():
        raise SettingsError("{file} is not a model's folder, and is not replaced by one", file=path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as temporary:
        fresh = Path(temporary) / "model"
        family.save(fresh)
        if path.exists():
            os.replace(path, Path(temporary) / "old")
        os.replace(fresh, path)
    return path
