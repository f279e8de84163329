"""BOFT, arXiv:2311.06243, sec. 4: OFT in several stages (butterfly), W' = R_m ... R_2 R_1 W."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdlora.lora.format.adapter_types import oft
from sdlora.lora.format.adapter_types.stored_type import (
    Measured,
    Shapes,
    StoredType,
    Tensors,
    role_sets,
)

if TYPE_CHECKING:
    from torch import Tensor


def measure(shapes: Shapes) -> Measured | None:
    """m stages (m,n,b,b); stage i rotates pairs that stand 2^i b / 2 apart."""
    blocks = shapes["oft_blocks"]
    if len(blocks) != 4 or blocks[2] != blocks[3] or blocks[2] % 2:
        return None
    stages, count, size = blocks[:3]
    whole = stages <= count.bit_length() and count % 2 ** (stages - 1) == 0
    return oft.measure_rotation(shapes, count, size) if whole else None


def delta(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    """Return R_m ... R_1 W - W, of the weight's shape."""
    rotation = oft.rotations(tensors, weight.shape[0])
    before = weight.float()
    after = before.flatten(1)
    for stage, blocks in enumerate(rotation):
        half = blocks.shape[-1] // 2 * 2**stage
        # rows `half` apart, together
        paired = after.reshape(-1, 2, half, after.shape[1]).transpose(1, 2)
        rotated = blocks @ paired.reshape(*blocks.shape[:2], -1)
        after = rotated.reshape(paired.shape).transpose(1, 2).reshape(after.shape)
    return oft.rescaled(tensors, after.reshape(weight.shape)) - before


BOFT = StoredType(
    name="BOFT",
    key_suffixes=oft.OFT.key_suffixes,
    required=role_sets("oft_blocks"),
    optional=oft.OPTIONAL,
    measure=measure,
    delta=delta,
    fits=oft.fits,
    needs_weight=True,
    to_kohya=oft.to_kohya,
)
