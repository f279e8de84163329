"""LoRA, arXiv:2106.09685, by peft's layers; on the CPU one product in place of three."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol

import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn.functional import linear

from sdlora.adapters.types.trainable_type import (
    ADAPTER,
    AdapterSpec,
    AdapterType,
    BaseLayer,
    copied,
    scale_product,
    smaller_side,
)
from sdlora.lora.format.layer import Adapter
from sdlora.models.frozen_weights import FrozenLinear

# numbers of a weight to numbers of its input, up to which the fused forward pass is taken
MAX_WEIGHT_RATIO = 4


class LoraLayer(Protocol):
    """peft's LoRA layer, as far as it is used here; the dictionaries are by adapter name."""

    base_layer: nn.Module
    lora_A: Mapping[str, nn.Linear]
    lora_B: Mapping[str, nn.Linear]
    lora_magnitude_vector: MutableMapping[str, nn.Module]
    scaling: dict[str, float]
    r: dict[str, int]


class FusedLinear(lora.Linear):  # type: ignore[misc]  # peft is Any to mypy
    """peft's linear LoRA layer, with `fused_forward` on the CPU where it can be."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's answer to `x`."""
        if not can_fuse(self, x):
            answer: Tensor = super().forward(x, *args, **kwargs)
            return answer
        return fused_forward(self, x)


class FusedConv2d(lora.Conv2d):  # type: ignore[misc]  # peft is Any to mypy
    """peft's LoRA convolution, with `fused_forward` on the CPU where it can be."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's answer to `x`."""
        if not can_fuse(self, x):
            answer: Tensor = super().forward(x, *args, **kwargs)
            return answer
        return fused_forward(self, x)


def can_fuse(layer: Any, x: Tensor) -> bool:
    """Return whether `fused_forward` computes the same as peft and faster.

    Only in float32, where W + s B A keeps what the first steps learn, only where the weight is not
    much larger than what goes through it, and not where a hook runs on the base layer.
    """
    base: Any = layer.base_layer
    if isinstance(base, FrozenLinear):  # its product keeps less
        return False
    weight: Tensor = base.weight
    return bool(
        layer.training
        and {x.dtype, weight.dtype} == {torch.float32}
        and weight.device.type == "cpu"
        and weight.numel() <= MAX_WEIGHT_RATIO * x.numel()
        and not base._forward_hooks
        and not torch.is_autocast_enabled("cpu")
    )


def fused_forward(layer: Any, x: Tensor) -> Tensor:
    """Return the answer by one product with W + s B A in place of three.

    Two of the three are so thin that on a CPU they cost as much as the third. The same but for
    rounding.
    """
    base: Any = layer.base_layer
    weight: Tensor = base.weight
    down, up = (factor.flatten(1) for factor in factors(layer))
    changed = torch.addmm(weight.flatten(1), up, down, alpha=layer.scaling[ADAPTER])
    changed = changed.view_as(weight)
    for norms in layer.lora_magnitude_vector.values():
        changed = norms.rescaled(changed)
    if weight.dim() == 2:
        return linear(x, changed, base.bias)
    answer: Tensor = base._conv_forward(x, changed, base.bias)
    return answer


def build(base: BaseLayer, spec: AdapterSpec) -> LoraLayer:
    """Return a fused layer where that helps: a window makes the thin products fast, dropout is of
    the inputs of A alone."""
    if spec.dropout or base.weight.shape[2:].numel() > 1:
        return build_peft(base, spec)
    return build_fused(base, spec)


def build_peft(base: BaseLayer, spec: AdapterSpec, **options: bool) -> LoraLayer:
    """Return peft's own layer; `options` are further arguments of its LoraConfig."""
    layer_class = lora.Linear if isinstance(base, nn.Linear) else lora.Conv2d
    return _build(layer_class, base, spec, options)


def build_fused(base: BaseLayer, spec: AdapterSpec, **options: bool) -> LoraLayer:
    """Return a layer that takes the fused forward pass where it can."""
    layer_class = FusedLinear if isinstance(base, nn.Linear) else FusedConv2d
    return _build(layer_class, base, spec, options)


def _build(
    layer_class: Any, base: BaseLayer, spec: AdapterSpec, options: Mapping[str, bool]
) -> LoraLayer:
    config = LoraConfig(lora_dropout=spec.dropout, init_lora_weights="gaussian", **options)
    layer: LoraLayer = layer_class(base, ADAPTER, config, r=spec.rank, lora_alpha=spec.alpha)
    return layer


def factors(layer: LoraLayer, name: str = ADAPTER) -> tuple[Tensor, Tensor]:
    """Return A (r,in[,k,k]) and B (out,r[,1,1])."""
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def up_matrix(layer: LoraLayer) -> Tensor:
    """Return B."""
    return layer.lora_B[ADAPTER].weight


def export(layer: LoraLayer) -> Adapter:
    """Return the LoRA; alpha / rank in the file is the scale, whatever rule training had."""
    down, up = map(copied, factors(layer))
    return Adapter.lora(down, up, layer.scaling[ADAPTER] * down.shape[0])


def initialize(layer: LoraLayer, rng: torch.Generator) -> None:
    """Draw A from a gaussian of deviation 1 / r; B stays zero."""
    down = layer.lora_A[ADAPTER].weight
    down.data.copy_(torch.randn(down.shape, generator=rng) / layer.r[ADAPTER])


@torch.no_grad()
def limit_norm(layer: LoraLayer, limit: float) -> None:
    """Scale A and B so that |s B A| is at most `limit`: |BA|² = <BᵀB, AAᵀ>, both only (r,r)."""
    matrices = list(factors(layer))
    down, up = (matrix.flatten(1) for matrix in matrices)
    norm = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt() * layer.scaling[ADAPTER]
    scale_product(matrices, norm, limit)


LORA = AdapterType(
    name="lora",
    build=build,
    export=export,
    max_rank=smaller_side,
    initialize=initialize,
    limit_norm=limit_norm,
    up_matrix=up_matrix,
)
