"""DoRA, arXiv:2402.09353: a weight's direction, learnt as a LoRA, and its magnitudes, learnt apart.

Eq. 5: W' = m (W + s B A) / |W + s B A|, the norm taken per output, as peft and the paper's code
have it, or per input, as LyCORIS had it first and most programs that read a `dora_scale` have it.
As in sec. 4.3, the norm is a constant to the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.dora import DoraConv2dLayer, DoraLinearLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from sdlora.adapters.types import lora
from sdlora.adapters.types.lora import LoraLayer
from sdlora.adapters.types.trainable_type import (
    ADAPTER,
    AdapterSpec,
    AdapterType,
    BaseLayer,
    copied,
    smaller_side,
)
from sdlora.lora.format.layer import Adapter
from sdlora.models.frozen_weights import FrozenLinear
from sdlora.settings.adapter_choices import DoraAxis

BY_OUTPUT = "; a DoRA by output, which ComfyUI, Forge, A1111 and InvokeAI misread"


class _Norms:
    """Magnitudes of one layer and the norms of eq. 5, per output.

    In float32 whatever the base, and without a detour over an identity matrix: in half the bits
    they would forget the first steps.
    """

    axis = 0  # of the weight (out,in[,k,k]), along which there is one magnitude each

    def get_lora_weight(
        self, lora_A: nn.Linear, lora_B: nn.Linear, adapter_name: str | None = None
    ) -> Tensor:
        """Return B A (out, in k k); peft's name and arguments."""
        with torch.autocast(lora_A.weight.device.type, enabled=False):
            return lora_B.weight.flatten(1) @ lora_A.weight.flatten(1)

    def get_weight_norm(
        self, weight: Tensor, lora_weight: Tensor, scaling: float, adapter_name: str | None = None
    ) -> Tensor:
        """Return |W + s B A|; peft's name and arguments."""
        return self.norm(weight.float() + scaling * lora_weight.float().reshape(weight.shape))

    def norm(self, direction: Tensor) -> Tensor:
        """(n,), or (1,n,1,1) of a convolution, along the axis. Computed in one way everywhere, so
        that magnitudes that begin as it are exactly 1 of it."""
        norm: Tensor = torch.linalg.vector_norm(direction.movedim(self.axis, 0).flatten(1), dim=1)
        return norm if direction.dim() == 2 else norm[None, :, None, None]


class _InputNorms(_Norms):
    """Per input: W' x = (W + s B A)(g x) with g = m / |W + s B A|, so that inputs are scaled."""

    axis = 1
    weight: Tensor  # the magnitudes, of the peft layer beside this class

    def rescaled(self, direction: Tensor) -> Tensor:
        """Return W' of the direction W + s B A."""
        return direction * (self.weight / self.norm(direction.detach()))

    def forward(
        self, x: Tensor, *, lora_A: nn.Linear, lora_B: nn.Linear, scaling: float, **options: Any
    ) -> Tensor:
        """Return the change of the base layer's answer to `x`: W (g - 1) x + s B A g x.

        Two products, since g x would be x again in the few bits of a small base until g has learnt
        much.
        """
        base: Any = options["base_layer"]
        weight: Tensor = base.weight
        with torch.no_grad():
            product = self.get_lora_weight(lora_A, lora_B)
            norm = self.get_weight_norm(weight, product, scaling)
        scale = self.weight / norm
        change = (x * (scale - 1)).to(weight.dtype)
        if isinstance(base, FrozenLinear):
            rescaled = base.product(change)
        elif weight.dim() == 2:
            rescaled = linear(change, weight)
        else:
            rescaled = base._conv_forward(change, weight, None)
        learnt: Tensor = lora_B(lora_A(x * scale)) * scaling
        return rescaled + learnt


# peft is Any to mypy
class _LinearOutputNorms(_Norms, DoraLinearLayer): ...  # type: ignore[misc]


class _ConvOutputNorms(_Norms, DoraConv2dLayer): ...  # type: ignore[misc]


class _LinearInputNorms(_InputNorms, DoraLinearLayer): ...  # type: ignore[misc]


class _ConvInputNorms(_InputNorms, DoraConv2dLayer): ...  # type: ignore[misc]


_NORMS: dict[tuple[DoraAxis, bool], Any] = {
    ("output", True): _LinearOutputNorms,
    ("output", False): _ConvOutputNorms,
    ("input", True): _LinearInputNorms,
    ("input", False): _ConvInputNorms,
}


def magnitudes(base: BaseLayer, axis: DoraAxis) -> nn.Module:
    """Return magnitudes that start as the norms of the base's weight, so that nothing changes."""
    norms = _NORMS[axis, isinstance(base, nn.Linear)](fan_in_fan_out=False)
    weight = base.weight
    start = norms.get_weight_norm(weight.detach(), torch.zeros_like(weight), 0.0)
    norms.weight = nn.Parameter(start)
    layer: nn.Module = norms
    return layer


def build(base: BaseLayer, spec: AdapterSpec) -> LoraLayer:
    """By output as peft computes it; by input fused where that can be.

    Unfused, by input takes a second product with W; with dropout, which is of the inputs of A
    alone, there is no other way.
    """
    can_fuse = spec.dora_axis == "input" and not spec.dropout
    layer = (lora.build_fused if can_fuse else lora.build_peft)(base, spec, use_dora=True)
    layer.lora_magnitude_vector[ADAPTER] = magnitudes(base, spec.dora_axis)
    return layer


def dora_scale(norms: Any) -> Tensor:
    """Return learnt magnitudes in the form of LyCORIS: (out,1[,1,1]) or (1,in[,1,1])."""
    weight = copied(norms.weight)
    window = (1,) * max(weight.dim() - 2, 0)
    return weight.reshape(*((-1, 1) if norms.axis == 0 else (1, -1)), *window)


def export(layer: LoraLayer) -> Adapter:
    """Return the LoRA with its `dora_scale`."""
    scale = dora_scale(layer.lora_magnitude_vector[ADAPTER])
    return Adapter("DoRA", {**lora.export(layer).tensors, "dora_scale": scale})


def note(layer: LoraLayer) -> str:
    """Return a warning for magnitudes by output."""
    norms: Any = layer.lora_magnitude_vector[ADAPTER]
    return BY_OUTPUT if norms.axis == 0 else ""


DORA = AdapterType(
    name="dora",
    build=build,
    export=export,
    max_rank=smaller_side,
    initialize=lora.initialize,
    limit_norm=lora.limit_norm,
    up_matrix=lora.up_matrix,
    note=note,
)
