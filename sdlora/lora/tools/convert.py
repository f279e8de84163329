"""Conversion of a LoRA to other layer names or another number format.

Names come from Stability AI's code for SD 1, 2 and XL, from Black Forest Labs' for FLUX, or from
diffusers. FLUX's original code has one layer where diffusers has several (a fused qkv).
LoRAs of separate layers are exactly one LoRA of the fused one: downs concatenated, ups block
diagonal; where all have the same down, it is kept once and the ranks do not add up.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from sdlora.architectures import FAMILIES
from sdlora.errors import LoraFileError
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.lora.format.layer_groups import Losses
from sdlora.lora.format.name_map import fused, unfused
from sdlora.lora.format.original_names import Rows
from sdlora.lora.tools.deltas import flat_factors
from sdlora.lora.tools.svd import Spectrum, distance

Share = tuple[Adapter | None, Rows]
# base -> prefix of a text encoder in some programs' files -> the usual prefix
_TEXT_ENCODER_PREFIXES = {
    **dict.fromkeys(("starter", "sd1", "sd2"), {"lora_te1_": "lora_te_"}),
    **dict.fromkeys(("sdxl", "sd3"), {"lora_te_": "lora_te1_"}),
    "flux": {"lora_te_": "lora_te1_", "lora_te2_": "lora_te3_"},
}
# Programs that use kohya's names read original names for these bases; fused SD 3 layers none reads
_ORIGINAL_NAMES = ("flux", "sdxl")


def with_key_style(file: LoraFile, names: Literal["kohya", "peft"]) -> LoraFile:
    """Return `file` with the layers that programs expect of a file with such names.

    LoraFileError when an adapter would have to be split or fused whose type does not allow it.
    """
    if names == "kohya" and file.base in _ORIGINAL_NAMES:
        return _with_stacked_layers(with_diffusers_names(file) if file.base == "sdxl" else file)
    return with_diffusers_names(file)


def with_diffusers_names(file: LoraFile) -> LoraFile:
    """Return `file` with diffusers' names for its layers, so that any two files are comparable."""
    if file.base not in FAMILIES:
        return file
    layers: dict[str, Adapter] = {}
    for name, shares in unfused(file.base, file.layers).items():
        for file_name, rows in shares:
            adapter = file.layers[name]
            diffusers_name = _diffusers_name(file_name, file.base)
            if diffusers_name in layers:
                raise LoraFileError(
                    "layer {layer!r} occurs twice, also as {key!r}",
                    layer=diffusers_name[:80],
                    key=name[:80],
                )
            layers[diffusers_name] = adapter.rows(*rows) if rows else adapter
    return replace(file, layers=layers)


def _diffusers_name(name: str, base: str) -> str:
    for file_name, ours in _TEXT_ENCODER_PREFIXES[base].items():
        if name.startswith(file_name):
            return ours + name.removeprefix(file_name)
    return name


def _with_stacked_layers(file: LoraFile) -> LoraFile:
    layers: dict[str, Adapter] = {}
    for name, shares in fused(file.base, file.layers).items():
        (first, rows), *others = shares
        if first and rows is None and not others:
            layers[name] = file.layers[first]
            continue
        parts = [
            (file.layers[file_name] if file_name else None, rows) for file_name, rows in shares
        ]
        layers[name] = _fuse(name, [(adapter, rows or (0, 1, 1)) for adapter, rows in parts])
    return replace(file, layers=layers)


def _fuse(name: str, shares: Sequence[Share]) -> Adapter:
    """Fuse adapters of separate layers into one with the output rows of all; None changes none."""
    present = [(adapter, rows) for adapter, rows in shares if adapter]
    roles = set().union(*(adapter.tensors for adapter, _ in present))
    if roles == {"diff"}:
        placed = [_place_rows(adapter.tensors["diff"], rows) for adapter, rows in present]
        return Adapter("full", {"diff": torch.stack(placed).sum(0)})
    if not roles <= {"down", "up", "alpha"}:
        kinds = " and ".join(sorted({adapter.kind for adapter, _ in present}))
        raise LoraFileError(
            "the {kinds} of layer {layer!r} cannot be stacked as kohya's names ask for; write "
            "peft's names, or resize it to a LoRA first",
            kinds=kinds,
            layer=name[:80],
        )
    downs = [adapter.tensors["down"] for adapter, _ in present]
    ups = [_place_rows(adapter.tensors["up"], rows) for adapter, rows in present]
    scales = [_alpha_scale(adapter) for adapter, _ in present]
    scale = scales[0] if len(set(scales)) == 1 else 1.0
    if len(set(scales)) > 1:
        ups = [up.float() * scale_of_up for up, scale_of_up in zip(ups, scales, strict=True)]
    if all(torch.equal(downs[0], other) for other in downs[1:]):
        return Adapter.lora(downs[0], torch.stack(ups).sum(0), scale * len(downs[0]))
    down = torch.cat(downs)
    return Adapter.lora(down, torch.cat(ups, 1), scale * len(down))


def _alpha_scale(adapter: Adapter) -> float:
    alpha = adapter.tensors.get("alpha")
    return 1.0 if alpha is None else float(alpha) / adapter.rank


def _place_rows(half: Tensor, rows: Rows) -> Tensor:
    """Return `half` at its rows of the fused layer, zeros at all others; rows wrap around."""
    first, last, of = rows
    share = len(half) // (last - first)
    places = (first * share + torch.arange(len(half))) % (share * of)
    return half.new_zeros(share * of, *half.shape[1:]).index_copy(0, places, half)


def with_one_alpha(file: LoraFile) -> LoraFile:
    """Return `file`, of plain LoRAs, with one alpha for all layers and ups scaled to match:
    diffusers 0.42 uses one alpha for all attention layers of a file with kohya's names."""
    ranks = [adapter.rank for adapter in file.layers.values() if adapter.type.factors]
    alpha = float(max(ranks, default=1))
    layers = {
        name: _rescale_to_alpha(adapter, alpha) if adapter.type.factors else adapter
        for name, adapter in file.layers.items()
    }
    return replace(file, layers=layers)


def _rescale_to_alpha(adapter: Adapter, alpha: float) -> Adapter:
    up = adapter.tensors["up"]
    scaled = (up.float() * (_alpha_scale(adapter) * adapter.rank / alpha)).to(up.dtype)
    return Adapter("LoRA", {**adapter.tensors, "up": scaled, "alpha": torch.tensor(alpha)})


def number_format(*files: LoraFile) -> torch.dtype:
    """Return the narrowest dtype that holds the tensors of all files."""
    layers = (adapter for file in files for adapter in file.layers.values())
    every = (tensor for adapter in layers for tensor in adapter.tensors.values() if tensor.dim())
    return functools.reduce(torch.promote_types, {tensor.dtype for tensor in every})


def rounding(file: LoraFile, dtype: torch.dtype) -> Losses:
    """Return the error of writing `file` in `dtype`: of the deltas of LoRAs, and of the tensors
    themselves where a delta depends on the base model."""
    losses = Losses()
    for name, adapter in file.layers.items():
        halves = {role: tensor for role, tensor in adapter.tensors.items() if tensor.dim()}
        stored = {role: tensor.to(dtype) for role, tensor in halves.items()}
        pairs = [(tensor.float(), stored[role].float()) for role, tensor in halves.items()]
        if adapter.factors() and any(not torch.equal(*pair) for pair in pairs):
            rounded = flat_factors(Adapter(adapter.kind, {**adapter.tensors, **stored}))
            exact = flat_factors(adapter)
            losses.add(name, Spectrum.of_factors(*exact).norm, distance(exact, rounded))
            continue
        for tensor, rounded_tensor in pairs:
            losses.add(name, float(tensor.norm()), float((tensor - rounded_tensor).norm()))
    return losses
