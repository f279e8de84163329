"""Singular value decomposition of a layer's delta: spaces, norms, and the error of a cut to a rank.

A delta is a matrix (m,n) of a layer's outputs by its inputs; that of a convolution is
(out, in·k·k). Of a product up · down of thin factors the SVD is computed without forming the
matrix: up = Qu Ru and downᵀ = Qd Rd, so up · down = Qu (Ru Rdᵀ) Qdᵀ, and the middle is only (r,r)
(Golub and Van Loan, Matrix Computations, sec. 5.4). All in float32, on the factors' device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The thin singular value decomposition left · diag(values) · right of a change (m,n)."""

    left: Tensor  # (m,r), orthonormal columns: basis of the outputs that it changes
    values: Tensor  # (r,), falling
    right: Tensor  # (r,n), orthonormal rows: basis of the inputs that it reads

    @classmethod
    def of_matrix(cls, matrix: Tensor) -> Spectrum:
        """Decompose a delta (m,n)."""
        return cls(*torch.linalg.svd(matrix.float(), full_matrices=False))

    @classmethod
    def of_factors(cls, down: Tensor, up: Tensor) -> Spectrum:
        """Decompose the product up (m,r) · down (r,n); r may be more than m or n."""
        out_basis, out_core = torch.linalg.qr(up.float())
        in_basis, in_core = torch.linalg.qr(down.float().T)
        left, values, right = torch.linalg.svd(out_core @ in_core.T, full_matrices=False)
        return cls(out_basis @ left, values, right @ in_basis.T)

    @property
    def norm(self) -> float:
        """Frobenius norm of the change."""
        return float(self.values.norm())

    @property
    def rank(self) -> int:
        """Singular values above float32's rounding, at least 1 (as numpy.linalg.matrix_rank)."""
        size = max(self.left.shape[0], self.right.shape[1])
        floor = self.values[0] * size * EPSILON
        return max(int((self.values > floor).sum()), 1)

    def rank_for(self, keep: float) -> int:
        """The smallest rank that keeps the share `keep` (0 to 1) of the squared singular values."""
        energy = self.values.double().square().cumsum(0)
        return min(int((energy < keep * energy[-1]).sum()) + 1, self.rank)

    def cut(self, rank: int) -> Spectrum:
        """The best approximation of at most this rank (Eckart and Young, 1936)."""
        return Spectrum(self.left[:, :rank], self.values[:rank], self.right[:rank])

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return down (r,n) and up (m,r) of equal norms, so that neither overflows float16."""
        root = self.values.sqrt()
        return root[:, None] * self.right, self.left * root

    def inner(self, other: Spectrum) -> float:
        """Frobenius inner product of two changes of the same layer."""
        outputs = (self.left * self.values).T @ (other.left * other.values)
        return float((outputs * (self.right @ other.right.T)).sum())


def distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """Frobenius norm of the difference of two changes, each given as (down, up)."""
    (down, up), (second_down, second_up) = first, second
    both = (
        torch.cat([down.float(), second_down.float()]),
        torch.cat([up.float(), -second_up.float()], 1),
    )
    return Spectrum.of_factors(*both).norm
