"""Frozen linear layers held in few bits: the formats of `weight_formats`.

A base model that only adapters learn on does not change, so its weights can be held in few bits and
made larger where they are used: W = held * scale. For the backward pass only the held bits are kept
and W is computed again (y = x W^T + b; the gradient of x is g W, W has none). The usual way, a
product with a weight that is dequantised beforehand, keeps all dequantised weights until then and
saves nothing.

Held are the linear layers of a denoiser's blocks: nearly all weights of SDXL and of transformers.
What is outside the blocks stays as it is, since it is small and errors there reach every token or
step: embeddings of pictures, times and texts, the last norm and the output layer. So do norms,
biases and convolutions, and the layers that read the time in residual blocks. VAE and text encoders
run once per picture or text and are not held.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from sdlora.errors import DeviceError
from sdlora.messages import Setting, size_in_words
from sdlora.models.weight_formats import FORMATS, HeldFormat, dequantize, load_kernels, quantize
from sdlora.settings.model import BasePrecision

# Paths of linear layers in a block, which has a number, but not of those that read the time there,
# by the names of diffusers and of single files
_IN_BLOCK = re.compile(
    r"(?!.*\b(time_emb_proj|emb_layers\.1)$|(time_embed|label_emb)\.).*\.\d+\..*"
)


class _FrozenProduct(torch.autograd.Function):
    """x W^T + b of a held W, for which only the held bits are kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, held: Tensor, scale: Tensor, bias: Tensor | None, *more: Any
    ) -> Tensor:
        ctx.held_format, ctx.shape = more
        ctx.save_for_backward(held, scale)
        return linear(x, dequantize(held, scale, ctx.held_format, ctx.shape, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        held, scale = ctx.saved_tensors
        weight = dequantize(held, scale, ctx.held_format, ctx.shape, grad.dtype)
        return grad @ weight, None, None, None, None, None


class FrozenLinear(nn.Linear):
    """A linear layer that holds its weight in few bits.

    `weight` computes the weight that it multiplies with, in `dtype`, for who needs that itself; to
    write into it changes nothing.
    """

    held: Tensor  # int8
    scale: Tensor  # float32 (blocks,1)

    def __init__(self, like: nn.Linear, held_format: HeldFormat) -> None:
        """Hold the weight of a layer, which may be on the meta device."""
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.in_features, self.out_features = like.in_features, like.out_features
        self.held_format, self.dtype = held_format, like.weight.dtype
        self.weight_shape = (self.out_features, self.in_features)
        held, scale = quantize(like.weight, held_format)
        self.held = nn.Parameter(held, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = like.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight (out,in) that the layer multiplies with."""
        return dequantize(self.held, self.scale, self.held_format, self.weight_shape, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b in the type of `x`, or in that of autocast."""
        return self.product(x, self.bias)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b with another bias, or none."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        bias = None if bias is None else bias.to(x.dtype)
        product: Tensor = _FrozenProduct.apply(  # type: ignore[no-untyped-call]
            x, self.held, self.scale, bias, self.held_format, self.weight_shape
        )
        return product

    def state_of(self, weight: Tensor) -> dict[str, Tensor]:
        """Return what the layer's state dict has for a weight."""
        held, scale = quantize(weight, self.held_format)
        return {"held": held, "scale": scale}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast as usual, but keep the scale in float32."""
        scale = self.scale
        self.dtype = fn(scale.new_empty(0, dtype=self.dtype)).dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        """See nn.Module."""
        return f"{super().extra_repr()}, held_format={self.held_format}"


def is_held(path: str) -> bool:
    """Return True for the path of a linear layer in a denoiser that is held in few bits."""
    return _IN_BLOCK.fullmatch(path) is not None


def freeze_linears(model: nn.Module, precision: BasePrecision) -> None:
    """Hold the linear layers of a model's blocks as asked, one after the other: of no more than one
    there are two forms at a time."""
    if precision == "full":
        return
    load_kernels(precision)
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and is_held(path):
            model.set_submodule(path, FrozenLinear(layer, precision))


def check_base_precision(precision: BasePrecision, device: torch.device) -> None:
    """DeviceError: the device cannot compute with the format."""
    if precision != "full" and device.type in FORMATS[precision].absent_on:
        raise DeviceError(
            "{setting} = {precision} is not there on Apple GPUs; choose int8",
            setting=Setting("base_precision"), precision=precision,
        )  # fmt: skip


@dataclass(frozen=True)
class HeldWeights:
    """Format that a model's frozen weights are held in; bytes of the model with and without it."""

    held_format: HeldFormat
    layers: int
    bytes: int
    full_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.held_format} in {self.layers} layers: {size_in_words(self.bytes)} instead of "
            f"{size_in_words(self.full_bytes)}"
        )


def held_weights(model: nn.Module) -> HeldWeights | None:
    """Return how the weights of a model are held; None when all are as usual."""
    layers = [layer for layer in model.modules() if isinstance(layer, FrozenLinear)]
    if not layers:
        return None
    total = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    saved = sum(
        math.prod(layer.weight_shape) * layer.dtype.itemsize
        - layer.held.nbytes
        - layer.scale.nbytes
        for layer in layers
    )
    return HeldWeights(layers[0].held_format, len(layers), total, total + saved)
