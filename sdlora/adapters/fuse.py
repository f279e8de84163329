"""LoRAs for good: added to a base model's weights, which are saved as a model of their own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sdlora.adapters import fit
from sdlora.adapters.matching import Place
from sdlora.errors import LoraFileError, SettingsError
from sdlora.files import write_atomically
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.lora.format.layer_groups import Losses
from sdlora.lora.tools.deltas import BaseWeight
from sdlora.models.base import Family
from sdlora.models.registry import INDEX
from sdlora.models.single_file import single_file


@torch.no_grad()
def fuse(
    family: Family, loras: Sequence[tuple[LoraFile, float]], dtype: torch.dtype
) -> tuple[Losses, list[str]]:
    """W = cast(W.float() + sum of weight · delta(W)), cast once, to `dtype`, and for good.

    What the cast misses of the sum, and the layers that the model does not have. LoraFileError when
    a file does not fit, or the sum overflows: the family is to be thrown away then.
    """
    terms: dict[Place, list[tuple[Adapter, float]]] = {}
    unmatched: list[str] = []
    for file, weight in loras:
        its = fit(file, family)
        unmatched += its.unmatched
        for place, adapter in its.places.items():
            terms.setdefault(place, []).append((adapter, weight))
    losses = Losses()
    for (part, path, parameter), its_terms in terms.items():
        value = getattr(family.parts[part].get_submodule(path), parameter)
        delta = torch.zeros_like(value, dtype=torch.float32)
        for adapter, weight in its_terms:
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
    family.pipeline.to(dtype=dtype)
    return losses, unmatched


def weights_of(family: Family) -> BaseWeight:
    """The family's own weights by layer name, for tools that read kinds which build on them."""

    def base_weight(name: str) -> Tensor:
        slots = family.vocabulary.get(name)
        if not slots or slots[0].rows:
            raise LoraFileError(
                "the model, {model}, has no layer {layer!r}", model=family.title, layer=name[:80]
            )
        weight: Tensor = family.parts[slots[0].part].get_submodule(slots[0].path).weight
        return weight

    return base_weight


def save_model(family: Family, path: Path, overwrite: bool, said: Mapping[str, str]) -> Path:
    """Save as one file where `path` ends in .safetensors, with `said` as its metadata; else as a
    diffusers folder. Complete or not at all. SettingsError when it exists, see `overwrite`."""
    if path.exists() and not overwrite:
        raise SettingsError("{file} exists; choose another --output or add --overwrite", file=path)
    if path.suffix == ".safetensors":
        tensors = single_file(family)
        return write_atomically(
            path, lambda file: save_file(tensors, file, {**said, "format": "pt"})
        )
    if path.exists() and not (path / INDEX).is_file():
        raise SettingsError("{file} is not a model's folder, and is not replaced by one", file=path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as temporary:
        fresh = Path(temporary) / "model"
        family.pipeline.save_pretrained(fresh, safe_serialization=True)
        if path.exists():
            os.replace(path, Path(temporary) / "old")
        os.replace(fresh, path)
    return path
