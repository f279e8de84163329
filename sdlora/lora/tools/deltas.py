"""What an adapter of any kind changes in its layer, as a matrix or a spectrum; back to a LoRA.

Most kinds tell their change alone. DoRA, GLoRA, IA3, OFT and BOFT say how a weight is to be changed
and need that weight: `pristine(layer name)` gives it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdlora.errors import LoraFileError
from sdlora.lora.format.adapter_types.stored_type import MAX_RANK
from sdlora.lora.format.layer import Adapter
from sdlora.lora.format.layer_groups import group_of
from sdlora.lora.tools.svd import Spectrum
from sdlora.messages import PerSurface

Pristine = Callable[[str], Tensor]


def no_weights(name: str) -> Tensor:
    """The `pristine` of callers that have no model open."""
    raise LoraFileError(
        "how layer {layer!r} is changed depends on the base model's own weight; name that model"
        "{how}",
        layer=name[:80],
        how=PerSurface(" with --model", ""),
    )


def has_matrix(adapter: Adapter) -> bool:
    """Whether it changes a matrix (out, in[,k,k]): what a LoRA can hold."""
    return "weight" in adapter.parameters and len(adapter.shape) != 1


def weight_shape(adapter: Adapter, name: str, pristine: Pristine) -> tuple[int, ...]:
    """(out, in[,k,k]) of the weight that a matrix is changed of."""
    is_open = adapter.type.open_window and len(adapter.shape) == 2
    if adapter.shape and not (is_open and group_of(name) == "convolution"):
        return adapter.shape
    return tuple(pristine(name).shape)


def change(adapter: Adapter, name: str, parameter: str, pristine: Pristine) -> Tensor:
    """The change of one parameter in float32, in the parameter's shape."""
    shape = adapter.shape
    if parameter == "bias" and adapter.bias is not None:
        shape = tuple(adapter.bias.shape)
    elif adapter.needs_weight:
        return adapter.delta(pristine(name), parameter)
    return adapter.delta(torch.zeros(()).expand(shape), parameter)  # only its shape counts


def spectrum(adapter: Adapter, name: str, pristine: Pristine) -> Spectrum:
    """Of the change of its weight, as a matrix (out, in·k·k)."""
    factors = adapter.factors()
    if factors is None:
        return Spectrum.of_matrix(change(adapter, name, "weight", pristine).flatten(1))
    down, up = factors
    return Spectrum.of_factors(down.flatten(1), up.flatten(1))


def as_lora(down: Tensor, up: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Adapter:
    """The product up (m,r) · down (r,n) as a LoRA, in `dtype`, for a weight of this shape."""
    rank, ones = down.shape[0], (1,) * len(shape[2:])
    down = down.reshape(rank, *shape[1:]).to(dtype)
    return Adapter.lora(down, up.reshape(shape[0], rank, *ones).to(dtype), float(rank))


def flat_factors(lora: Adapter) -> tuple[Tensor, Tensor]:
    """down (r,n) and up (m,r) in float32 of a plain LoRA, its scale in up."""
    down, up = lora.factors() or (torch.zeros(0, 0),) * 2
    return down.flatten(1), up.flatten(1)


def limit(shape: tuple[int, ...]) -> int:
    """The highest rank that a layer of this shape can be written with."""
    return min(shape[0], math.prod(shape[1:]), MAX_RANK)
