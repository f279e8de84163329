"""Full change of a weight, its bias or both, as LyCORIS' `full` and ComfyUI's `diff` write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    """The shape of `diff`; of a bias alone the weight's shape stays open."""
    diff, bias = shapes.get("diff"), shapes.get("diff_b")
    if diff is None:
        return ((), 0) if bias and len(bias) == 1 else None
    return (diff, 0) if diff and bias in (None, diff[:1]) else None


def delta(tensors: Tensors, weight: Tensor, scale: float) -> Tensor:
    """Return `diff` itself."""
    return tensors["diff"]


def fits(tensors: Tensors, shape: Shape) -> bool:
    """Return whether a bias alone has a number per output."""
    return "diff" in tensors or shape[0] == tensors["diff_b"].numel()


FULL = StoredType(
    name="full",
    key_suffixes={".diff": "diff", ".diff_b": "diff_b"},
    required=role_sets("diff", "diff_b"),
    optional=frozenset({"diff_b"}),
    measure=measure,
    delta=delta,
    fits=fits,
    row_axes=lambda tensors, shape: {"diff": 0, "diff_b": 0},
    bias="diff_b",
    to_kohya=unchanged_in_kohya,
)
