"""LoHa, arXiv:2108.06098, prop. 1: delta = scale · (w1_a · w1_b) ⊙ (w2_a · w2_b).

LyCORIS' tensors (arXiv:2309.14859): each product may have a Tucker core, the whole a `dora_scale`.
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

_HALVES = "hada_w1_a hada_w1_b hada_w2_a hada_w2_b"
_CORES = "hada_t1 hada_t2"


def measure(shapes: Shapes) -> Measured | None:
    """Shape and rank that both products have; a convolution's window may be flattened."""
    measured = measure_product(shapes, "hada_w1_a", "hada_w1_b", "hada_t1")
    if measured is None or measured != measure_product(shapes, "hada_w2_a", "hada_w2_b", "hada_t2"):
        return None
    return measured if dora.is_side(shapes.get("dora_scale"), measured[0]) else None


def delta(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    """Return the Hadamard product of both matrices, with the norms of a `dora_scale` if any."""
    first = whole_matrix(tensors, "hada_w1", "hada_t1")
    product = first * whole_matrix(tensors, "hada_w2", "hada_t2") * scale
    return dora.decompose(tensors, weight, product)


def row_axes(tensors: Tensors, shape: Shape) -> dict[str, int]:
    """Return the axes of the outer factors; with a core they have the rank first."""
    if dora.is_by_input(tensors, shape):
        return {}
    axis = int("hada_t1" in tensors)
    return {"hada_w1_a": axis, "hada_w2_a": axis, "dora_scale": 0}


LOHA = StoredType(
    name="LoHa",
    key_suffixes={f".{role}": role for role in f"{_HALVES} {_CORES}".split()} | SHARED_KEYS,
    required=role_sets(_HALVES, f"{_HALVES} {_CORES}"),
    optional=SCALE | {"dora_scale"},
    measure=measure,
    delta=delta,
    fits=dora.side_fits,
    row_axes=row_axes,
    open_window=True,
)
