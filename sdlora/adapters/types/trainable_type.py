"""AdapterType: a row of the table of trainable adapter types, and parts that several rows share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from sdlora.lora.format.adapter_types.stored_type import MAX_RANK
from sdlora.lora.format.layer import Adapter
from sdlora.settings.adapter_choices import AdapterName, DoraAxis

ADAPTER = "sdlora"  # peft's name of the adapter that is trained in each layer
BaseLayer = nn.Linear | nn.Conv2d
LayerT = TypeVar("LayerT")


@dataclass(frozen=True)
class AdapterSpec:
    """Settings of one layer's adapter."""

    rank: int  # at most what the layer can hold
    alpha: float
    dropout: float = 0.0
    lokr_factor: int = -1  # -1: as even as can be
    dora_axis: DoraAxis = "input"  # the side of the weight that has magnitudes


def smaller_side(weight: Tensor) -> int:
    """Return the highest rank that a matrix (out, in k k) can have."""
    return min(weight.shape[0], math.prod(weight.shape[1:]))


def unbounded(weight: Tensor) -> int:
    """Return the highest rank that a setting allows, whatever the weight."""
    return MAX_RANK


@dataclass(frozen=True, kw_only=True)
class AdapterType(Generic[LayerT]):
    """One adapter type that can be trained: how it is put on a layer, and what a file holds of it.

    `build` wraps a linear layer or a convolution in a module whose `base_layer` is that layer, so
    that nothing changes yet; its parameters that require gradients are trained. `export` gives the
    learnt tensors, copied to the CPU. `max_rank`: above it a rank adds nothing but size to a layer
    of this weight (out,in[,k,k]).
    """

    name: AdapterName
    build: Callable[[BaseLayer, AdapterSpec], LayerT]
    export: Callable[[LayerT], Adapter]
    max_rank: Callable[[Tensor], int] = unbounded
    # draw the start from a generator of our own, which does not depend on how peft begins
    initialize: Callable[[LayerT, torch.Generator], None] | None = None
    # scale the change of a layer down to a Frobenius norm, for max_norm
    limit_norm: Callable[[LayerT, float], None] | None = None
    up_matrix: Callable[[LayerT], Tensor] | None = None  # for LoRA+
    # alpha goes by the rank that is asked for, also where a layer holds less
    alpha_of_asked_rank: bool = False
    note: Callable[[LayerT], str] = lambda layer: ""  # for the report of what is trained


def copied(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU without gradient."""
    return tensor.detach().cpu().clone()


@torch.no_grad()
def scale_product(factors: list[Tensor], norm: Tensor, limit: float) -> None:
    """Scale the factors of a change of Frobenius norm `norm` so that it is at most `limit`.

    Max-norm regularisation (Srebro et al. 2004), as kohya-ss/sd-scripts, networks/lora.py does it:
    the change is a product of n factors, so each is multiplied by the n-th root. No value is read
    back from the device.
    """
    share = (limit / norm).clamp(max=1.0) ** (1 / len(factors))
    torch._foreach_mul_(factors, share)
