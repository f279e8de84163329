"""Delta of an adapter of any type, as a matrix or as its SVD, and back to a LoRA.

Most types define their delta alone. DoRA, GLoRA, IA3, OFT and BOFT compute it from the weight of
the base model: `base_weight(layer name)` returns that.
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

BaseWeight = Callable[[str], Tensor]


def no_weights(name: str) -> Tensor:
    """Raise LoraFileError: the `base_weight` of callers that have no model open."""
    raise LoraFileError(
        "how layer {layer!r} is changed depends on the base model's own weight; name that model"
        "{how}",
        layer=name[:80],
        how=PerSurface(" with --model", ""),
    )


def has_matrix(adapter: Adapter) -> bool:
    """True if the adapter changes a matrix (out, in[,k,k]), which a LoRA can hold."""
    return "weight" in adapter.parameters and len(adapter.shape) != 1


def shape_of_weight(adapter: Adapter, name: str, base_weight: BaseWeight) -> tuple[int, ...]:
    """Shape (out, in[,k,k]) of the weight that an adapter with a matrix changes."""
    is_open = adapter.type.open_window and len(adapter.shape) == 2
    if adapter.shape and not (is_open and group_of(name) == "conv"):
        return adapter.shape
    return tuple(base_weight(name).shape)


def parameter_delta(adapter: Adapter, name: str, parameter: str, base_weight: BaseWeight) -> Tensor:
    """Return the delta of one parameter: float32, of the parameter's shape."""
    shape = adapter.shape
    if parameter == "bias" and adapter.bias is not None:
        shape = tuple(adapter.bias.shape)
    elif adapter.needs_weight:
        return adapter.delta(base_weight(name), parameter)
    return adapter.delta(torch.zeros(()).expand(shape), parameter)  # only its shape counts


def spectrum(adapter: Adapter, name: str, base_weight: BaseWeight) -> Spectrum:
    """Return the SVD of the delta of the adapter's weight, as a matrix (out, in·k·k)."""
    factors = adapter.factors()
    if factors is None:
        return Spectrum.of_matrix(parameter_delta(adapter, name, "weight", base_weight).flatten(1))
    down, up = factors
    return Spectrum.of_factors(down.flatten(1), up.flatten(1))


def as_lora(down: Tensor, up: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Adapter:
    """Return up (m,r) · down (r,n) as a LoRA layer in `dtype`, for a weight of shape `shape`."""
    rank, ones = down.shape[0], (1,) * len(shape[2:])
    down = down.reshape(rank, *shape[1:]).to(dtype)
    return Adapter.lora(down, up.reshape(shape[0], rank, *ones).to(dtype), float(rank))


def flat_factors(lora: Adapter) -> tuple[Tensor, Tensor]:
    """Return down (r,n) and up (m,r) of a plain LoRA in float32, with its scale in up."""
    down, up = lora.factors() or (torch.zeros(0, 0),) * 2
    return down.flatten(1), up.flatten(1)


def max_rank(shape: tuple[int, ...]) -> int:
    """The highest rank that a layer of this shape can be written with."""
    return min(shape[0], math.prod(shape[1:]), MAX_RANK)
