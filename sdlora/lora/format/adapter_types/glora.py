"""GLoRA, arXiv:2306.07967, eq. 10 as LyCORIS has it: delta = scale · (W · a1 · a2 + b1 · b2)."""

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

_FACTORS = ("a1", "a2", "b1", "b2")


def measure(shapes: Shapes) -> Measured | None:
    """a1 (in,r), a2 (r,in), b1 (out,r), b2 (r,in[,k,k]), each [,1,1].

    With bm (r,r,k,k) between b1 and b2, b2 is (r,in,1,1).
    """
    if any(len(shapes[role]) not in (2, 4) for role in _FACTORS):
        return None
    a1, a2, b1, b2 = (shapes[role] for role in factor_order(shapes))
    bm = shapes.get("bm")
    rank, width = b2[:2]
    fits = (a1[:2], a2[:2], b1[1]) == ((width, rank), (rank, width), rank)
    if bm is not None and (len(bm) != 4 or bm[:2] != (rank, rank) or b2[2:] != (1, 1)):
        return None
    ones = set(a1[2:] + a2[2:] + b1[2:]) <= {1}
    return ((b1[0], width, *(bm or b2)[2:]), rank) if fits and ones else None


def factor_order(shapes: Shapes) -> tuple[str, str, str, str]:
    """Return the roles that are a1, a2, b1, b2 in `measure`: files of LyCORIS 1 swap each pair.

    A square weight lets both be: then the lower rank is the true one.
    """
    a1, a2, b1, b2 = (shapes[role] for role in _FACTORS)
    new = a1[1] == a2[0] == b1[1] == b2[0]
    old = a1[0] == a2[1] == b1[0] == b2[1]
    swapped = old and (not new or a1[0] < a1[1])
    return ("a2", "a1", "b2", "b1") if swapped else ("a1", "a2", "b1", "b2")


def _order_of(tensors: Tensors) -> tuple[str, str, str, str]:
    return factor_order({role: tuple(tensor.shape) for role, tensor in tensors.items()})


def delta(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    """Return scale · (W · a1 · a2 + b1 · b2), of the weight's shape."""
    a1, a2, b1, b2 = (tensors[role] for role in _order_of(tensors))
    added = b1.flatten(1) @ times_core(b2, tensors.get("bm")).flatten(1)
    by_input = weight.float().movedim(1, -1) @ a1.flatten(1) @ a2.flatten(1)
    return (by_input.movedim(-1, 1) + added.reshape(weight.shape)) * scale


def row_axes(tensors: Tensors, shape: Shape) -> dict[str, int]:
    """Return the axis of b1: W · a1 · a2 keeps the rows of W apart."""
    return {_order_of(tensors)[2]: 0}


GLORA = StoredType(
    name="GLoRA",
    key_suffixes={f".{role}.weight": role for role in (*_FACTORS, "bm")} | SHARED_KEYS,
    required=role_sets("a1 a2 b1 b2"),
    optional=SCALE | {"bm"},
    measure=measure,
    delta=delta,
    row_axes=row_axes,
    needs_weight=True,
)
