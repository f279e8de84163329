"""LoKr, arXiv:2212.10650, sec. 3: delta = scale · w1 ⊗ w2, the Kronecker product.

LyCORIS' tensors (arXiv:2309.14859): each half is whole or a product, the larger may have a Tucker
core, the whole a `dora_scale`. LyCORIS factors a half while that makes its longer side smaller, so
a rank is not bounded by the weight's sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdlora.lora.format.adapter_types import dora
from sdlora.lora.format.adapter_types.products import measure_product, whole_matrix
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

_ROLES = ["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"]


def measure(shapes: Shapes) -> Measured | None:
    """The product of the halves' shapes, and the rank of the larger half, else of the smaller."""
    small, large = (
        (shapes[whole], 0)
        if whole in shapes
        else measure_product(shapes, f"{whole}_a", f"{whole}_b", core)
        for whole, core in (("lokr_w1", ""), ("lokr_w2", "lokr_t2"))
    )
    if not small or not large or len(small[0]) != 2 or len(large[0]) not in (2, 4):
        return None
    shape = (small[0][0] * large[0][0], small[0][1] * large[0][1], *large[0][2:])
    rank = large[1] or small[1]
    return (shape, rank) if dora.is_side(shapes.get("dora_scale"), shape) else None


def delta(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    """Return the Kronecker product of the halves, with the norms of a `dora_scale` if any."""
    import torch

    small = whole_matrix(tensors, "lokr_w1", "") * scale
    large = whole_matrix(tensors, "lokr_w2", "lokr_t2")
    window = weight.shape[2:]
    large = large.reshape(large.shape[0], weight.shape[1] // small.shape[1], *window)
    product = torch.kron(small.reshape(*small.shape, *(1 for _ in window)), large)
    return dora.decompose(tensors, weight, product)


def fits(tensors: Tensors, shape: Shape) -> bool:
    """Return whether the inputs of a flat shape can be split between the halves."""
    inner = [tensors[role].shape[1] for role in ("lokr_w1", "lokr_w1_b") if role in tensors]
    return dora.side_fits(tensors, shape) and not any(shape[1] % size for size in inner)


def row_axes(tensors: Tensors, shape: Shape) -> dict[str, int]:
    """Return the axis of the smaller half, whose rows stand for blocks of the outputs."""
    if dora.is_by_input(tensors, shape):
        return {}
    return {"lokr_w1": 0, "lokr_w1_a": 0, "dora_scale": 0}


LOKR = StoredType(
    name="LoKr",
    key_suffixes={f".{role}": role for role in _ROLES} | SHARED_KEYS,
    required=role_sets(
        *(
            f"{small} {large}"
            for small in ("lokr_w1", "lokr_w1_a lokr_w1_b")
            for large in ("lokr_w2", "lokr_w2_a lokr_w2_b", "lokr_w2_a lokr_w2_b lokr_t2")
        )
    ),
    optional=SCALE | {"dora_scale"},
    measure=measure,
    delta=delta,
    fits=fits,
    row_axes=row_axes,
    open_window=True,
    is_rank_bounded=False,
)
