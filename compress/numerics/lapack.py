"""The decompositions of torch.linalg and scipy.linalg that are used here, with their types: both libraries leave them out.

Nothing is computed here, so that a reader who trusts LAPACK may skip the file. Everywhere else in this room a wrong type is
an error; here alone the checker is told that it cannot know.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any

import scipy.linalg
import torch
from torch import Tensor


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(eigenvalues (d,) rising, eigenvectors as columns (d, d)) of a symmetric matrix (d, d); the signs are LAPACK's."""
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors


def eigvalsh(matrix: Tensor) -> Tensor:
    """Eigenvalues (d,) of a symmetric matrix (d, d), rising."""
    return torch.linalg.eigvalsh(matrix)


def right_singular_vectors(matrix: Tensor) -> Tensor:
    """Vh (min(m, n), n) of a matrix (m, n): as rows, of the largest singular value first."""
    # Reduced: the full (n, n) would only add an arbitrary basis of the null space.
    return torch.linalg.svd(matrix, full_matrices=False)[2]


def orthonormal_columns(matrix: Tensor) -> Tensor:
    """Q (m, min(m, n)) of matrix = Q R: column k lies in the span of the first k + 1 columns of `matrix`."""
    return torch.linalg.qr(matrix)[0]


def inverse(matrix: Tensor) -> Tensor:
    """The inverse of a square matrix (d, d). Raises torch.linalg.LinAlgError for an exactly singular one."""
    return torch.linalg.inv(matrix)


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """X (d, k) of matrix (d, d) @ X = right (d, k). Raises torch.linalg.LinAlgError for an exactly singular matrix."""
    return torch.linalg.solve(matrix, right)


def norms(matrix: Tensor, dim: int) -> Tensor:
    """Euclidean norms along `dim`: of the columns (0) or the rows (1) of a matrix."""
    return matrix.norm(dim=dim)


def pivoted_triangle(matrix: Tensor) -> tuple[Any, Any]:
    """(R (r, n), order (n,)) of the column-pivoted QR: matrix (r, n)[:, order] = Q R, |R_kk| falling; numpy arrays."""
    factors: Any = scipy.linalg.qr(matrix.numpy(), mode="economic", pivoting=True)
    _, triangle, order = factors
    return triangle, order


def solve_upper(triangle: Any, right: Any) -> Any:
    """X (r, k) of triangle (r, r) @ X = right (r, k), of which only the upper triangle is read; numpy arrays."""
    return scipy.linalg.solve_triangular(triangle, right)
