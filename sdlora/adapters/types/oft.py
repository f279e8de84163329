"""OFT, arXiv:2306.07280: the outputs of a layer, but for the bias, are rotated in blocks.

peft's own OFT rotates a layer's inputs, which no program reads from a file; its rotation is put
behind the layer here, where the paper, kohya's and LyCORIS' files have it.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.oft.layer import OFTRotationModule
from torch import Tensor, nn

from sdlora.adapters.types.trainable_type import AdapterSpec, AdapterType, BaseLayer, copied
from sdlora.lora.format.layer import Adapter


class Rotation(OFTRotationModule):  # type: ignore[misc]  # peft is Any to mypy
    """peft's rotation, by the exact Cayley transform and without a read from the device whether
    I + Q can be inverted: of a skew Q it always can."""

    def _cayley_batch(self, Q: Tensor, block_size: int, *_: Any) -> Tensor:
        skew = self._pytorch_skew_symmetric(Q, block_size)
        identity = torch.eye(block_size, device=Q.device, dtype=Q.dtype).expand_as(skew)
        rotation: Tensor = torch.linalg.solve_ex(identity + skew, identity - skew, left=False)[0]
        return rotation


class RotatedLinear(nn.Module):
    """A linear layer or convolution with rotated outputs."""

    def __init__(self, base_layer: BaseLayer, max_size: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        outputs = base_layer.weight.shape[0]
        size = block_size(outputs, max_size)
        pairs = size * (size - 1) // 2
        self.rotation = Rotation(outputs // size, pairs, size, outputs, use_cayley_neumann=False)
        nn.init.zeros_(self.rotation.weight)
        self.rotation.to(base_layer.weight.device)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's answer, rotated; exactly it while the rotation is none."""
        base = self.base_layer
        y: Tensor = base(x, *args, **kwargs)
        axis = 1 if isinstance(base, nn.Conv2d) else -1
        plain = y.movedim(axis, -1)
        if base.bias is not None:
            plain = plain - base.bias
        change: Tensor = self.rotation(plain.flatten(0, -2)).reshape(plain.shape) - plain
        return y + change.movedim(-1, axis)


def block_size(outputs: int, limit: int) -> int:
    """Return the largest divisor of `outputs` up to `limit`; the smallest above 1 if none is."""
    sizes = [size for size in range(2, outputs + 1) if outputs % size == 0]
    return max((size for size in sizes if size <= limit), default=sizes[0])


def export(layer: RotatedLinear) -> Adapter:
    """Return blocks of LyCORIS' convention.

    It rotates by (I + S)(I - S)^-1 with S = blocks - blocks^T, peft by that of -S. Alpha 0: no
    limit.
    """
    rotation: Any = layer.rotation
    blocks = torch.zeros(rotation.r, rotation.block_size, rotation.block_size)
    blocks[:, rotation.rows.cpu(), rotation.cols.cpu()] = -copied(rotation.weight)
    return Adapter("OFT", {"oft_blocks": blocks, "alpha": torch.tensor(0.0)})


def build(base: BaseLayer, spec: AdapterSpec) -> RotatedLinear:
    """Return the layer with blocks of up to `spec.rank` outputs."""
    return RotatedLinear(base, spec.rank)


OFT = AdapterType(name="oft", build=build, export=export)
