"""The same LoRA with other names for its layers, or in another number format.

Names differ by whose code they are taken from: Stability AI's blocks for SD 1, 2 and XL, Black
Forest Labs' for FLUX, or diffusers'. FLUX's first code stacks layers that diffusers keeps apart.
A stack of LoRAs is exactly one LoRA: its downs stand on top of each other, its ups stand along the
diagonal; where all shares have the same down, it is kept once and the ranks do not add up.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from sdlora.architectures import BASES
from sdlora.errors import LoraFileError
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.lora.format.layer_groups import Losses
from sdlora.lora.format.name_map import fused, unfused
from sdlora.lora.format.original_names import Rows
from sdlora.lora.tools.deltas import flat_factors
from sdlora.lora.tools.svd import Spectrum, distance

Share = tuple[Adapter | None, Rows]
# base -> how its text encoders are spelt by others -> by most
_TEXTS = {
    **dict.fromkeys(("starter", "sd1", "sd2"), {"lora_te1_": "lora_te_"}),
    **dict.fromkeys(("sdxl", "sd3"), {"lora_te_": "lora_te1_"}),
    "flux": {"lora_te_": "lora_te1_", "lora_te2_": "lora_te3_"},
}
# Of these, programs with kohya's names read the first code's best; of stacks in SD 3 they read none
_FIRST_CODE = ("flux", "sdxl")


def renamed(file: LoraFile, names: Literal["kohya", "peft"]) -> LoraFile:
    """`file` with the layers that a file with such names is expected to have.

    LoraFileError when a layer of a kind that cannot be cut or stacked would have to be.
    """
    if names == "kohya" and file.base in _FIRST_CODE:
        return _stacked(alike(file) if file.base == "sdxl" else file)
    return alike(file)


def alike(file: LoraFile) -> LoraFile:
    """`file` with diffusers' names for its layers, so that any two files can be held together."""
    if file.base not in BASES:
        return file
    layers: dict[str, Adapter] = {}
    for name, shares in unfused(file.base, file.layers).items():
        for theirs, rows in shares:
            adapter = file.layers[name]
            spelt = _spelt(theirs, file.base)
            if spelt in layers:
                raise LoraFileError(
                    "layer {layer!r} stands twice, as {key!r} too", layer=spelt[:80], key=name[:80]
                )
            layers[spelt] = adapter.rows(*rows) if rows else adapter
    return replace(file, layers=layers)


def _spelt(name: str, base: str) -> str:
    for theirs, ours in _TEXTS[base].items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _stacked(file: LoraFile) -> LoraFile:
    layers: dict[str, Adapter] = {}
    for name, shares in fused(file.base, file.layers).items():
        (first, rows), *others = shares
        if first and rows is None and not others:
            layers[name] = file.layers[first]
            continue
        parts = [(file.layers[theirs] if theirs else None, rows) for theirs, rows in shares]
        layers[name] = _stack(name, [(adapter, rows or (0, 1, 1)) for adapter, rows in parts])
    return replace(file, layers=layers)


def _stack(name: str, shares: Sequence[Share]) -> Adapter:
    """One adapter whose output rows are those of all shares; a share that is None changes none."""
    present = [(adapter, rows) for adapter, rows in shares if adapter]
    roles = set().union(*(adapter.tensors for adapter, _ in present))
    if roles == {"diff"}:
        placed = [_placed(adapter.tensors["diff"], rows) for adapter, rows in present]
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
    ups = [_placed(adapter.tensors["up"], rows) for adapter, rows in present]
    scales = [_scale(adapter) for adapter, _ in present]
    scale = scales[0] if len(set(scales)) == 1 else 1.0
    if len(set(scales)) > 1:
        ups = [up.float() * its for up, its in zip(ups, scales, strict=True)]
    if all(torch.equal(downs[0], other) for other in downs[1:]):
        return Adapter.lora(downs[0], torch.stack(ups).sum(0), scale * len(downs[0]))
    down = torch.cat(downs)
    return Adapter.lora(down, torch.cat(ups, 1), scale * len(down))


def _scale(adapter: Adapter) -> float:
    alpha = adapter.tensors.get("alpha")
    return 1.0 if alpha is None else float(alpha) / adapter.rank


def _placed(half: Tensor, rows: Rows) -> Tensor:
    """`half` at its rows of the stack, zeros at all others; rows past the end begin anew."""
    first, last, of = rows
    share = len(half) // (last - first)
    places = (first * share + torch.arange(len(half))) % (share * of)
    return half.new_zeros(share * of, *half.shape[1:]).index_copy(0, places, half)


def with_one_alpha(file: LoraFile) -> LoraFile:
    """`file`, of LoRAs alone, with one alpha for all layers and the difference in their ups:
    diffusers 0.42 takes one for all attention layers of a file with kohya's names."""
    ranks = [adapter.rank for adapter in file.layers.values() if adapter.type.factors]
    alpha = float(max(ranks, default=1))
    layers = {
        name: _of_alpha(adapter, alpha) if adapter.type.factors else adapter
        for name, adapter in file.layers.items()
    }
    return replace(file, layers=layers)


def _of_alpha(adapter: Adapter, alpha: float) -> Adapter:
    up = adapter.tensors["up"]
    scaled = (up.float() * (_scale(adapter) * adapter.rank / alpha)).to(up.dtype)
    return Adapter("LoRA", {**adapter.tensors, "up": scaled, "alpha": torch.tensor(alpha)})


def number_format(*files: LoraFile) -> torch.dtype:
    """The narrowest format that holds all of their numbers."""
    layers = (adapter for file in files for adapter in file.layers.values())
    every = (tensor for adapter in layers for tensor in adapter.tensors.values() if tensor.dim())
    return functools.reduce(torch.promote_types, {tensor.dtype for tensor in every})


def rounding(file: LoraFile, dtype: torch.dtype) -> Losses:
    """What is lost when `file` is written in `dtype`: of a LoRA's change, or where a change cannot
    be told without a model, of the numbers themselves."""
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
        for tensor, its in pairs:
            losses.add(name, float(tensor.norm()), float((tensor - its).norm()))
    return losses
