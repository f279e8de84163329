"""DoRA, arXiv:2402.09353: a LoRA whose changed weight has learnt norms, per output or per input.

Eq. 5: W' = m (W + scale · up · down) / |W + scale · up · down|. `dora_scale` is LyCORIS' name of m,
(out,1[,1,1]) or (1,in[,1,1]); `magnitude` is PEFT's, (out,) or (1,out,1,1). LyCORIS lets LoHa and
LoKr have a `dora_scale` too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sdlora.lora.format.adapter_types import lora
from sdlora.lora.format.adapter_types.products import along_axis
from sdlora.lora.format.adapter_types.stored_type import (
    SCALE,
    SHARED_KEYS,
    Measured,
    Shape,
    Shapes,
    StoredType,
    Tensors,
    role_sets,
    with_alpha,
)

if TYPE_CHECKING:
    from torch import Tensor

MAGNITUDES = frozenset({"dora_scale", "magnitude"})


def is_side(scale: Shape | None, shape: Shape) -> bool:
    """Return whether a `dora_scale` has a number per output (out,1[,1,1]) or input (1,in[,1,1])."""
    if scale is None:
        return True
    if len(scale) not in (2, 4) or set(scale[2:]) - {1}:
        return False
    if len(scale) > len(shape):  # of a convolution with a flat shape: in divides in k k
        return scale[:2] == (shape[0], 1) or (scale[0] == 1 and shape[1] % scale[1] == 0)
    return len(scale) == len(shape) and scale[:2] in ((shape[0], 1), (1, shape[1]))


def measure(shapes: Shapes) -> Measured | None:
    """The shape and rank of the LoRA, when the magnitudes fit its weight."""
    measured = lora.measure(shapes)
    if measured is None or not is_side(shapes.get("dora_scale"), measured[0]):
        return None
    outputs = measured[0][0]
    return measured if math.prod(shapes.get("magnitude", (outputs,))) == outputs else None


def decompose(tensors: Tensors, weight: Tensor, change: Tensor) -> Tensor:
    """Return the change of `weight` (float32) with the norms of eq. 5; `change` if it has none.

    The norm is that of the changed weight, as in LyCORIS and peft, per output or per input.
    """
    if not tensors.keys() & MAGNITUDES:
        return change
    import torch

    weight = weight.float()
    merged = weight + change.reshape(weight.shape)
    side = tensors.get("dora_scale")
    axis = 0 if side is None or tuple(side.shape[:2]) == (weight.shape[0], 1) else 1
    size = along_axis(tensors["magnitude"] if side is None else side, weight, axis)
    others = [i for i in range(weight.dim()) if i != axis]
    norm: Tensor = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
    return merged * (size / (norm + torch.finfo(norm.dtype).eps)) - weight


def delta(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    """Return W' - W of eq. 5."""
    return decompose(tensors, weight, lora.delta(tensors, weight, scale))


def side_fits(tensors: Tensors, shape: Shape) -> bool:
    """Return whether a `dora_scale`, if there is one, is for a weight of this shape."""
    scale = tensors.get("dora_scale")
    return scale is None or tuple(scale.shape[:2]) in ((shape[0], 1), (1, shape[1]))


def is_by_input(tensors: Tensors, shape: Shape) -> bool:
    """Return whether there is a magnitude per input: it is the norm of whole columns."""
    scale = tensors.get("dora_scale")
    return scale is not None and scale.shape[0] != shape[0]


def row_axes(tensors: Tensors, shape: Shape) -> dict[str, int]:
    """Return the axes of up and magnitudes; none when the norms are those of whole columns."""
    if is_by_input(tensors, shape):
        return {}
    is_conv = "magnitude" in tensors and tensors["magnitude"].shape[0] == 1
    return {"up": 0, "dora_scale": 0, "magnitude": int(is_conv)}


def to_kohya(tensors: Tensors, shape: Shape, rank: int) -> Tensors:
    """Return the tensors with magnitudes as (out,1[,1,1]), as LyCORIS has them."""
    window = (1,) * len(shape[1:])
    return {
        "dora_scale" if role == "magnitude" else role: (
            tensor.reshape(-1, *window) if role == "magnitude" else tensor
        )
        for role, tensor in with_alpha(tensors, shape, rank).items()
    }


def to_peft(tensors: Tensors, shape: Shape) -> dict[str, Tensor] | None:
    """Return the LoRA and its magnitudes (out,) or (1,out,1,1), which PEFT has by output only."""
    halves = lora.to_peft({r: t for r, t in tensors.items() if r not in MAGNITUDES}, shape)
    if halves is None or is_by_input(tensors, shape):
        return None
    if "magnitude" in tensors:
        magnitude = tensors["magnitude"]
    else:
        flat = tensors["dora_scale"].flatten()
        magnitude = flat if len(shape) == 2 else flat[None, :, None, None]
    return {**halves, ".lora_magnitude_vector": magnitude}


DORA = StoredType(
    name="DoRA",
    key_suffixes={
        ".lora_magnitude_vector": "magnitude",
        ".lora_magnitude_vector.weight": "magnitude",
        ".lora_magnitude_vector.default": "magnitude",
        ".lora_magnitude_vector.default.weight": "magnitude",
        ".dora_scale": "dora_scale",
        **SHARED_KEYS,
    },
    required=role_sets("down up dora_scale", "down up magnitude"),
    optional=SCALE | {"mid"},
    measure=measure,
    delta=delta,
    fits=side_fits,
    row_axes=row_axes,
    needs_weight=True,
    read=lora.with_window,
    to_kohya=to_kohya,
    to_peft=to_peft,
)
