"""IA3, arXiv:2205.05638, sec. 3.3: each input or output is scaled; delta = W · weight."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sdlora.lora.format.adapter_types.products import along_axis
from sdlora.lora.format.adapter_types.stored_type import (
    Measured,
    Shape,
    Shapes,
    StoredType,
    Tensors,
    role_sets,
    unchanged_in_kohya,
)

if TYPE_CHECKING:
    from torch import Tensor


def measure(shapes: Shapes) -> Measured | None:
    """A vector, in any shape of ones, and a flag; the weight's shape stays open."""
    weight = shapes["weight"]
    fits = weight and math.prod(weight) == max(weight) and math.prod(shapes["on_input"]) == 1
    return ((), 0) if fits else None


def delta(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    """Return the weight times the learnt vector along inputs or outputs."""
    return weight.float() * along_axis(tensors["weight"], weight, _axis(tensors))


def fits(tensors: Tensors, shape: Shape) -> bool:
    """Return whether the weight has as many inputs or outputs as the vector has numbers."""
    axis = _axis(tensors)
    return len(shape) > axis and shape[axis] == tensors["weight"].numel()


def _axis(tensors: Tensors) -> int:
    return int(bool(tensors["on_input"]))


IA3 = StoredType(
    name="IA3",
    key_suffixes={".weight": "weight", ".on_input": "on_input"},
    required=role_sets("weight on_input"),
    optional=frozenset(),
    measure=measure,
    delta=delta,
    fits=fits,
    needs_weight=True,
    to_kohya=unchanged_in_kohya,
)
