"""StoredType: a row of the table of adapter types, and rules that several rows share.

Modules of this package import torch inside functions only: files are listed without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

MAX_RANK = 1024
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # tensor key or role -> shape
Measured = tuple[Shape, int]  # shape of the weight, () if the tensors leave it open; rank or 0
Tensors: TypeAlias = "Mapping[str, Tensor]"  # role -> tensor of one layer

SHARED_KEYS = {".alpha": "alpha", ".scalar": "scalar"}  # of several types, with one meaning
SCALE = frozenset(SHARED_KEYS.values())


def role_sets(*sets: str) -> tuple[frozenset[str], ...]:
    """Alternative sets of roles, each written as role names with spaces between."""
    return tuple(frozenset(roles.split()) for roles in sets)


def fits_every_shape(tensors: Tensors, shape: Shape) -> bool:
    """Return True: the shape that `measure` gives decides alone."""
    return True


def no_row_axes(tensors: Tensors, shape: Shape) -> Mapping[str, int]:
    """Return no axes, for a type that mixes the outputs of its weight."""
    return {}


def unchanged(tensors: Tensors) -> Tensors:
    """Return the tensors as they are."""
    return tensors


def unchanged_in_kohya(tensors: Tensors, shape: Shape, rank: int) -> Tensors:
    """Return the tensors as they are, for a type that has no alpha."""
    return tensors


def with_alpha(tensors: Tensors, shape: Shape, rank: int) -> Tensors:
    """Return the tensors with an alpha that means scale 1 where the file had none."""
    if "alpha" in tensors:
        return tensors
    import torch

    return {**tensors, "alpha": torch.tensor(float(rank or 1))}


@dataclass(frozen=True, kw_only=True)
class StoredType:
    """One adapter type of LoRA files: roles, shapes and delta of its tensors, and rules of writing.

    A role is the name of a tensor within a layer, the same for every key format. Shapes are those
    of torch: (out,in) of a linear layer, (out,in,k,k) of a convolution.
    """

    name: str
    # how a key ends -> role; of several endings of one role kohya's files have the first
    key_suffixes: Mapping[str, str]
    required: tuple[frozenset[str], ...]  # roles: exactly one of these sets
    optional: frozenset[str]
    # shapes by role -> shape of the weight and rank; None when the shapes do not fit together
    measure: Callable[[Shapes], Measured | None]
    # (float32 tensors by role, pristine weight, scale) -> float32 change, reshapable to the weight
    delta: Callable[[Tensors, Tensor, float], Tensor]
    # (tensors, shape of a weight without a 1 x 1 window): further conditions besides `measure`
    fits: Callable[[Tensors, Shape], bool] = fits_every_shape
    # (tensors, shape) -> role and axis of the tensors that alone decide a row of the outputs
    row_axes: Callable[[Tensors, Shape], Mapping[str, int]] = no_row_axes
    # down (r,in[,k,k]) and up (out,r) of a type whose delta is scale * up @ down
    factors: Callable[[Tensors], tuple[Tensor, Tensor]] | None = None
    bias: str = ""  # role of the change of the bias
    needs_weight: bool = False  # the delta depends on the numbers of the weight
    open_window: bool = False  # (out, in k k) may stand for (out,in,k,k)
    is_rank_bounded: bool = True  # by the smaller side: a higher rank adds nothing
    # tensors as the file has them -> as they are used
    read: Callable[[Tensors], Tensors] = unchanged
    # (tensors, shape, rank) -> tensors by role as kohya's and LyCORIS' files have them
    to_kohya: Callable[[Tensors, Shape, int], Tensors] = with_alpha
    # (tensors, shape) -> tensors by PEFT's key suffix; None when PEFT's format cannot hold them
    to_peft: Callable[[Tensors, Shape], Mapping[str, Tensor] | None] | None = None

    def has_roles(self, roles: frozenset[str]) -> bool:
        """Return whether a layer of this type may have exactly these roles."""
        return any(need <= roles <= need | self.optional for need in self.required)

    def rank_limit(self, shape: Shape) -> int:
        """Return the highest rank that a layer of this shape may have; `shape` may be ()."""
        if shape and self.is_rank_bounded:
            return min(MAX_RANK, shape[0], math.prod(shape[1:]))
        return MAX_RANK
