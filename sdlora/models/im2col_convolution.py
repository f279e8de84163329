"""Convolutions of few pixels as matrix products (im2col), for processors.

In the deep levels of a UNet a convolution has millions of weights and a few dozen pixels, so its
time is that of reading the weights. The processor's convolution arranges all of them anew at each
call, forward and backward, which takes several times as long. Pixels arranged in columns instead
(Chellapilla et al. 2006, "High Performance Convolutional Neural Networks for Document Processing",
sec. 3) are little work, and the product with the weights reads them once.

The sums are those of the convolution in another order. With more pixels the columns are the
greater work and torch's convolution computes.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import fold, unfold

MIN_WEIGHTS = 2**22  # in a layer: below it torch's own is as fast (`benchmarks.convolutions`)
MAX_PIXELS = 128  # of all pictures of a batch together


class _Im2colProduct(torch.autograd.Function):
    """W * x without bias, of a weight that learns nothing: the gradient is that of x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Im2colConv2d) -> Tensor:
        ctx.layer, ctx.size = layer, x.shape[2:]
        matrix = layer.weight.flatten(1)  # (out, in k k)
        ctx.save_for_backward(matrix)
        columns = _joined(unfold(x, **layer.windows))
        height, width = layer.output_size(x)
        return _split(matrix @ columns, len(x)).reshape(len(x), -1, height, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        (matrix,) = ctx.saved_tensors
        columns = _split(matrix.T @ _joined(grad.flatten(2)), len(grad))
        return fold(columns, ctx.size, **ctx.layer.windows), None


def _joined(columns: Tensor) -> Tensor:
    """(B,C,L) -> (C, B L)"""
    return columns.transpose(0, 1).flatten(1)


def _split(columns: Tensor, batch: int) -> Tensor:
    """(C, B L) -> (B,C,L)"""
    return columns.view(len(columns), batch, -1).transpose(0, 1)


class Im2colConv2d(nn.Conv2d):
    """A convolution (B,in,H,W) -> (B,out,H',W') that is a matrix product where pixels are few."""

    @classmethod
    def of(cls, like: nn.Conv2d) -> Self:
        """Return a layer that computes what `like` does, with its own weight and bias."""
        layer = cls.__new__(cls)  # nn.Conv2d's own beginning would make a weight
        nn.Module.__init__(layer)
        for name in vars(like).keys() - vars(layer).keys():  # stride, padding and what else it is
            setattr(layer, name, getattr(like, name))
        layer.weight, layer.bias = like.weight, like.bias
        return layer

    @property
    def windows(self) -> dict[str, Any]:
        """Window of the input for one pixel of the output, as `torch.nn.Unfold` takes it."""
        return {
            "kernel_size": self.kernel_size, "stride": self.stride,
            "padding": self.padding, "dilation": self.dilation,
        }  # fmt: skip

    def output_size(self, x: Tensor) -> tuple[int, int]:
        """Return (H', W') for `x` (torch.nn.Conv2d, "Shape")."""
        height, width = (
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, padding, dilation in zip(
                x.shape[2:], *self.windows.values(), strict=True
            )
        )
        return height, width

    def forward(self, x: Tensor) -> Tensor:
        """See torch.nn.Conv2d."""
        height, width = self.output_size(x)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        is_learnt = self.weight.requires_grad
        if len(x) * height * width > MAX_PIXELS or is_learnt or dtype != self.weight.dtype:
            return super().forward(x)
        y: Tensor = _Im2colProduct.apply(x.to(dtype), self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias[:, None, None]


def use_im2col(model: nn.Module) -> None:
    """Let the layers of a model that have many weights compute few pixels as matrix products."""
    for path, layer in list(model.named_modules()):
        if (
            type(layer) is nn.Conv2d
            and layer.weight.numel() >= MIN_WEIGHTS
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        ):
            model.set_submodule(path, Im2colConv2d.of(layer))
