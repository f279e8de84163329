"""Full change of a norm's weight and bias, as LyCORIS' `train_norm` writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdlora.lora.format.adapter_types.stored_type import (
    Measured,
    Shapes,
    StoredType,
    Tensors,
    role_sets,
    unchanged_in_kohya,
)

if TYPE_CHECKING:
    from torch import Tensor


def measure(shapes: Shapes) -> Measured | None:
    """A number per channel in each."""
    weight = shapes["w_norm"]
    return (weight, 0) if len(weight) == 1 and shapes.get("b_norm", weight) == weight else None


def delta(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    """Return `w_norm` itself."""
    return tensors["w_norm"]


NORM = StoredType(
    name="norm",
    key_suffixes={".w_norm": "w_norm", ".b_norm": "b_norm"},
    required=role_sets("w_norm"),
    optional=frozenset({"b_norm"}),
    measure=measure,
    delta=delta,
    bias="b_norm",
    to_kohya=unchanged_in_kohya,
)
