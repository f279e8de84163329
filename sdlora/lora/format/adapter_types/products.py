"""Products of small tensors that several adapter types are made of; torch within functions only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdlora.lora.format.adapter_types.stored_type import Measured, Shapes, Tensors

if TYPE_CHECKING:
    from torch import Tensor


def measure_product(shapes: Shapes, a: str, b: str, core: str = "") -> Measured | None:
    """(shape, r) of a (rows,r) · b (r,columns[,k,k]).

    With a Tucker core (r,r,k,k) in between both a (r,rows) and b (r,columns) have the rank first.
    None when the shapes do not fit together.
    """
    first, second, t = shapes[a], shapes[b], shapes.get(core)
    if len(first) != 2 or len(second) not in (2, 4):
        return None
    if t is None:
        return ((first[0], *second[1:]), second[0]) if first[1] == second[0] else None
    fits = len(t) == 4 and len(second) == 2 and t[:2] == (first[0], second[0])
    return ((first[1], second[1], *t[2:]), max(t[:2])) if fits else None


def times_core(inner: Tensor, core: Tensor | None) -> Tensor:
    """The core (p,q,k,k) of a Tucker decomposition times its inner side (q,in[,1,1])."""
    import torch

    return inner if core is None else torch.einsum("pq...,qi->pi...", core, inner.flatten(1))


def whole_matrix(tensors: Tensors, name: str, core: str) -> Tensor:
    """A matrix of LoHa or LoKr: whole under `name`, a · b, or aᵀ · core · b."""
    import torch

    if name in tensors:
        return tensors[name]
    a, b = tensors[f"{name}_a"], tensors[f"{name}_b"]
    if core in tensors:
        return torch.einsum("po,pi...->oi...", a, times_core(b, tensors[core]))
    return a @ b.flatten(1)


def along_axis(vector: Tensor, weight: Tensor, axis: int) -> Tensor:
    """`vector` in a shape that is broadcast along one axis of `weight`."""
    return vector.reshape([-1 if i == axis else 1 for i in range(weight.dim())])
