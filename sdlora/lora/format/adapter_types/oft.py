"""OFT, arXiv:2306.07280, sec. 3: outputs are rotated in blocks, W' = R W with R of eq. 5 (Cayley).

`alpha` limits the norm of the skew matrices, as in LyCORIS' `constraint`; `rescale` multiplies each
output afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdlora.lora.format.adapter_types.products import along_axis
from sdlora.lora.format.adapter_types.stored_type import (
    Measured,
    Shape,
    Shapes,
    StoredType,
    Tensors,
    role_sets,
)

if TYPE_CHECKING:
    from torch import Tensor

NO_LIMIT = 10_000.0  # of a skew matrix' norm: beyond every rotation but for one by 180 degrees
OPTIONAL = frozenset({"alpha", "rescale"})


def measure(shapes: Shapes) -> Measured | None:
    """n blocks (n,b,b), each for b outputs."""
    blocks = shapes["oft_blocks"]
    if len(blocks) != 3 or blocks[1] != blocks[2]:
        return None
    return measure_rotation(shapes, blocks[0], blocks[1])


def measure_rotation(shapes: Shapes, count: int, size: int) -> Measured | None:
    """An open shape of count * size outputs, when a `rescale` has a number for each."""
    out = (count * size,)
    rescale = shapes.get("rescale", out)
    return ((), 0) if rescale[:1] == out and set(rescale[1:]) <= {1} else None


def fits(tensors: Tensors, shape: Shape) -> bool:
    """Return whether a weight of this shape has as many outputs as the blocks rotate."""
    count, size = tensors["oft_blocks"].shape[-3:-1]
    return len(shape) > 1 and shape[0] == count * size


def rotations(tensors: Tensors, outputs: int) -> Tensor:
    """Cayley transform (I + Q)(I - Q)^-1 of the skew part of `oft_blocks`, its norm limited."""
    import torch

    skew = tensors["oft_blocks"] - tensors["oft_blocks"].mT
    if (limit := float(tensors.get("alpha", 0.0)) * outputs) > 0:
        skew = skew * (limit / (skew.norm() + 1e-8)).clamp(max=1.0)
    identity = torch.eye(skew.shape[-1], device=skew.device)
    # I - Q always has an inverse, but not in float32 when Q is huge: that overflows, as it were
    rotation, failed = torch.linalg.solve_ex(identity - skew, identity + skew, left=False)
    limited: Tensor = rotation.masked_fill((failed != 0)[..., None, None], torch.nan)
    return limited


def rescaled(tensors: Tensors, weight: Tensor) -> Tensor:
    """Return the rotated weight, each output multiplied by its `rescale` if there is one."""
    return weight * along_axis(tensors["rescale"], weight, 0) if "rescale" in tensors else weight


def delta(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    """Return R W - W, of the weight's shape."""
    rotation = rotations(tensors, weight.shape[0])
    before = weight.float()
    blocks = before.reshape(*rotation.shape[:2], -1)
    return rescaled(tensors, (rotation.mT @ blocks).reshape(weight.shape)) - before


def to_kohya(tensors: Tensors, shape: Shape, rank: int) -> Tensors:
    """Return the tensors with a limit that is none, where they have none.

    Of alpha 0 A1111, SD.Next and sd-scripts make no rotation at all; ComfyUI, LyCORIS and this
    program no limit.
    """
    if float(tensors.get("alpha", 0.0)) > 0:
        return tensors
    import torch

    return {**tensors, "alpha": torch.tensor(NO_LIMIT)}


OFT = StoredType(
    name="OFT",
    key_suffixes={
        ".oft_blocks": "oft_blocks",
        ".rescale": "rescale",
        ".alpha": "alpha",
    },
    required=role_sets("oft_blocks"),
    optional=OPTIONAL,
    measure=measure,
    delta=delta,
    fits=fits,
    needs_weight=True,
    to_kohya=to_kohya,
)
