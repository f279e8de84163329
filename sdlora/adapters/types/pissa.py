"""PiSSA, arXiv:2404.02948: a LoRA that starts as the largest singular vectors of its weight."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

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
from sdlora.lora.tools.svd import Spectrum

START = "start"  # peft's name of the second, fixed adapter, which takes the start off again


def build(base: BaseLayer, spec: AdapterSpec) -> LoraLayer:
    """A and B from the largest singular values (eq. 2 and 3), and the same once more, fixed and
    subtracted: W - B0 A0 + B A without touching W, so that the base is still the base.

    The SVD is a randomised one (arXiv:0909.4061).
    """
    layer: Any = lora.build_peft(base, spec)
    weight = base.weight
    wide = min(spec.rank + 16, *weight.flatten(1).shape)
    left, values, right = torch.svd_lowrank(weight.float().flatten(1), q=wide, niter=4)
    root = (values[: spec.rank] / layer.scaling[ADAPTER]).sqrt()
    a, b = lora.factors(layer)
    a.data = (root[:, None] * right[:, : spec.rank].T).reshape(a.shape)
    b.data = (left[:, : spec.rank] * root).reshape(b.shape)
    config = LoraConfig(init_lora_weights="gaussian")
    layer.update_layer(START, spec.rank, spec.alpha, config)
    for halves in (layer.lora_A, layer.lora_B):
        halves[START].weight.data = halves[ADAPTER].weight.data.clone()
    layer.scaling[START] = -layer.scaling[ADAPTER]
    layer.set_adapter([ADAPTER, START])
    layer.lora_A[START].requires_grad_(False)
    layer.lora_B[START].requires_grad_(False)
    built: LoraLayer = layer
    return built


def export(layer: LoraLayer) -> Adapter:
    """Return B A - B0 A0 as a LoRA of twice the rank (app. C), which fits the base as it is.

    As its own singular vectors: next to B A itself, half numbers would round all of it away.
    """
    (down, up), (down0, up0) = lora.factors(layer), lora.factors(layer, START)
    scale = layer.scaling[ADAPTER]
    downs = torch.cat([copied(down), copied(down0)]).flatten(1)
    ups = torch.cat([copied(up), -copied(up0)], 1).flatten(1) * scale
    down2, up2 = Spectrum.of_factors(downs, ups).cut(len(downs)).factors()
    shape = down.shape[1:]
    return Adapter.lora(
        down2.reshape(-1, *shape), up2.reshape(*up2.shape, *up.shape[2:]), float(len(down2))
    )


def max_rank(weight: Tensor) -> int:
    """Return half of what the layer can hold, for the change in the file has twice the rank."""
    return max(smaller_side(weight) // 2, 1)


PISSA = AdapterType(
    name="pissa", build=build, export=export, max_rank=max_rank, up_matrix=lora.up_matrix
)
