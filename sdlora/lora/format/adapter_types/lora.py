"""LoRA, arXiv:2106.09685: delta = alpha / r · up · down, eq. 3; LoCon where it is on a convolution.

LyCORIS' form with a Tucker core: arXiv:2309.14859, sec. 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdlora.lora.format.adapter_types.products import times_core
from sdlora.lora.format.adapter_types.stored_type import (
    SCALE,
    SHARED_KEYS,
    Measured,
    Shape,
    Shapes,
    StoredType,
    Tensors,
    role_sets,
)

if TYPE_CHECKING:
    from torch import Tensor

PEFT_ROLES = frozenset({"down", "up", "alpha"})


def measure(shapes: Shapes) -> Measured | None:
    """up (out,r[,1,1]) · down (r,in[,k,k]); with mid (r,r,k,k) between, down is (r,in,1,1).

    LyCORIS' DyLoRA has the up of a convolution without its ones.
    """
    down, up, mid = shapes["down"], shapes["up"], shapes.get("mid")
    sizes = (len(up), len(down))
    if sizes not in ((2, 2), (4, 4), (2, 4)) or up[1:] != (down[0], *(1,) * len(up[2:])):
        return None
    if mid is not None and (mid[:2] != (down[0],) * 2 or len(mid) != 4 or down[2:] != (1, 1)):
        return None
    shape = (up[0], down[1], *(mid or down)[2:])
    return (shape, down[0]) if shapes.get("diff_b", up[:1]) == up[:1] else None


def delta(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    """Return (out, in k k): scale · up · down, or scale · up · mid · down."""
    down = times_core(tensors["down"], tensors.get("mid"))
    return (tensors["up"].flatten(1) * scale) @ down.flatten(1)


def factors(tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Return down (r,in[,k,k]), a core multiplied into it in float32, and up (out,r)."""
    down, mid = tensors["down"], tensors.get("mid")
    whole = down if mid is None else times_core(down.float(), mid.float())
    return whole, tensors["up"].flatten(1)


def with_window(tensors: Tensors) -> Tensors:
    """Return the tensors with the up of a convolution as (out,r,1,1); DyLoRA has it as (out,r)."""
    missing = tensors["down"].dim() - tensors["up"].dim()
    return {**tensors, "up": tensors["up"][(..., *(None,) * missing)]}


def to_peft(tensors: Tensors, shape: Shape) -> dict[str, Tensor] | None:
    """Return down and up under PEFT's names, which have no place for a core or a bias."""
    if tensors.keys() - PEFT_ROLES:
        return None
    return {".lora_A.weight": tensors["down"], ".lora_B.weight": tensors["up"]}


LORA = StoredType(
    name="LoRA",
    key_suffixes={
        ".lora_down.weight": "down",
        ".lora_up.weight": "up",
        ".lora_mid.weight": "mid",
        ".lora_A.weight": "down",
        ".lora_B.weight": "up",
        ".lora_A.default.weight": "down",
        ".lora_B.default.weight": "up",
        ".lora.down.weight": "down",
        ".lora.up.weight": "up",
        ".lora_linear_layer.down.weight": "down",
        ".lora_linear_layer.up.weight": "up",
        ".diff_b": "diff_b",
        ".reshape_weight": "reshape_weight",
        **SHARED_KEYS,
    },
    required=role_sets("down up"),
    optional=SCALE | {"mid", "diff_b", "reshape_weight"},
    measure=measure,
    delta=delta,
    row_axes=lambda tensors, shape: {"up": 0, "diff_b": 0},
    factors=factors,
    bias="diff_b",
    read=with_window,
    to_peft=to_peft,
)
