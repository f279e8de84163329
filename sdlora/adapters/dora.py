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

from sdlora.settings.adapter_and_loss import DoraAxis


class _Norms:
    """The magnitudes of one layer and the norms of eq. 5, per output; in float32 whatever the base,
    and without a detour over an identity matrix: in half the bits they would forget the first
    steps."""

    axis = 0  # of the weight (out,in[,k,k]), along which there is one magnitude each

    def get_lora_weight(self, lora_A: Any, lora_B: Any, adapter_name: str | None = None) -> Tensor:
        with torch.autocast(lora_A.weight.device.type, enabled=False):
            return lora_B.weight.flatten(1) @ lora_A.weight.flatten(1)

    def get_weight_norm(
        self, weight: Tensor, lora_weight: Tensor, scaling: float, adapter_name: str | None = None
    ) -> Tensor:
        return self.norm(weight.float() + scaling * lora_weight.float().reshape(weight.shape))

    def norm(self, direction: Tensor) -> Tensor:
        """(n,), or (1,n,1,1) of a convolution, along the axis. Computed in one way everywhere, so
        that magnitudes that begin as it are exactly 1 of it."""
        norm = torch.linalg.vector_norm(direction.movedim(self.axis, 0).flatten(1), dim=1)
        return norm if direction.dim() == 2 else norm[None, :, None, None]


class _InputNorms(_Norms):
    """Per input: W' x = (W + s B A)(g x) with g = m / |W + s B A|, so that inputs are scaled."""

    axis = 1

    def rescaled(self: Any, direction: Tensor) -> Tensor:
        """W' of the direction W + s B A."""
        return direction * (self.weight / self.norm(direction.detach()))

    def forward(self: Any, x: Tensor, *, lora_A: Any, lora_B: Any, scaling: float,
                base_layer: Any, **_: Any) -> Tensor:  # fmt: skip
        """What to add to the base layer's answer to `x`: W (g - 1) x + s B A g x. Two products,
        since g x would be x again in the few bits of a small base until g has learnt much."""
        weight = base_layer.weight
        with torch.no_grad():
            product = self.get_lora_weight(lora_A, lora_B)
            norm = self.get_weight_norm(weight, product, scaling)
        scale = self.weight / norm
        change = (x * (scale - 1)).to(weight.dtype)
        if weight.dim() == 2:
            rescaled = linear(change, weight)
        else:
            rescaled = base_layer._conv_forward(change, weight, None)
        return rescaled + lora_B(lora_A(x * scale)) * scaling


class _LinearOutputNorms(_Norms, DoraLinearLayer): ...


class _ConvOutputNorms(_Norms, DoraConv2dLayer): ...


class _LinearInputNorms(_InputNorms, DoraLinearLayer): ...


class _ConvInputNorms(_InputNorms, DoraConv2dLayer): ...


_NORMS: dict[tuple[DoraAxis, bool], Any] = {
    ("output", True): _LinearOutputNorms,
    ("output", False): _ConvOutputNorms,
    ("input", True): _LinearInputNorms,
    ("input", False): _ConvInputNorms,
}


def magnitudes(base: nn.Module, axis: DoraAxis) -> nn.Module:
    """Magnitudes for a linear layer or a convolution that begin as the norms of its weight, so that
    nothing changes yet."""
    norms = _NORMS[axis, isinstance(base, nn.Linear)](fan_in_fan_out=False)
    weight: Any = base.weight
    start = norms.get_weight_norm(weight.detach(), torch.zeros_like(weight), 0.0)
    norms.weight = nn.Parameter(start)
    layer: nn.Module = norms
    return layer


def dora_scale(magnitudes: Any) -> Tensor:
    """Learnt magnitudes in the form of LyCORIS: (out,1[,1,1]) or (1,in[,1,1])."""
    weight: Tensor = magnitudes.weight.detach().cpu().clone()
    window = (1,) * max(weight.dim() - 2, 0)
    return weight.reshape(*((-1, 1) if magnitudes.axis == 0 else (1, -1)), *window)
