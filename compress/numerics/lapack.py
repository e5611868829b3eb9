"""The decompositions of torch.linalg and scipy.linalg that are used here, with their types: both libraries leave them out.

Nothing is computed here, so that a reader who trusts LAPACK may skip the file. Everywhere else in this room a wrong type is
an error; here alone the checker is told that it cannot know.

Each runs on one thread: how many there are changes the last bits of what LAPACK returns, and the same input is to give the
same bytes. What several threads would gain, several processes do: they decompose units side by side.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import scipy.linalg
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def one_thread() -> Generator[None]:
    """What the calling thread does with torch inside the block, it does alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _controller() -> ThreadpoolController:
    """The libraries that are loaded, looked for once."""
    return ThreadpoolController()


def _on_one_thread(function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # The second is for scipy and numpy, which bring a BLAS of their own.
        with one_thread(), _controller().limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return call


@_on_one_thread
def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(eigenvalues (d,) rising, eigenvectors as columns (d, d)) of a symmetric matrix (d, d); the signs are LAPACK's."""
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors


@_on_one_thread
def eigvalsh(matrix: Tensor) -> Tensor:
    """Eigenvalues (d,) of a symmetric matrix (d, d), rising."""
    return torch.linalg.eigvalsh(matrix)


@_on_one_thread
def right_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(singular values (min(m, n),) falling, Vh (min(m, n), n), as rows) of a matrix (m, n)."""
    # Reduced: the full (n, n) would only add an arbitrary basis of the null space.
    return torch.linalg.svd(matrix, full_matrices=False)[1:]


def right_singular_vectors(matrix: Tensor) -> Tensor:
    """Vh (min(m, n), n) of a matrix (m, n): as rows, of the largest singular value first."""
    return right_singular(matrix)[1]


@_on_one_thread
def orthonormal_columns(matrix: Tensor) -> Tensor:
    """Q (m, min(m, n)) of matrix = Q R: column k lies in the span of the first k + 1 columns of `matrix`."""
    return torch.linalg.qr(matrix)[0]


@_on_one_thread
def inverse(matrix: Tensor) -> Tensor:
    """The inverse of a square matrix (d, d). Raises torch.linalg.LinAlgError for an exactly singular one."""
    return torch.linalg.inv(matrix)


@_on_one_thread
def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """X (d, k) of matrix (d, d) @ X = right (d, k). Raises torch.linalg.LinAlgError for an exactly singular matrix."""
    return torch.linalg.solve(matrix, right)


def norms(matrix: Tensor, dim: int) -> Tensor:
    """Euclidean norms along `dim`: of the columns (0) or the rows (1) of a matrix."""
    return matrix.norm(dim=dim)


@_on_one_thread
def pivoted_triangle(matrix: Tensor) -> tuple[Any, Any]:
    """(R (r, n), order (n,)) of the column-pivoted QR: matrix (r, n)[:, order] = Q R, |R_kk| falling; numpy arrays."""
    factors: Any = scipy.linalg.qr(matrix.numpy(), mode="economic", pivoting=True)
    _, triangle, order = factors
    return triangle, order


@_on_one_thread
def solve_upper(triangle: Any, right: Any) -> Any:
    """X (r, k) of triangle (r, r) @ X = right (r, k), of which only the upper triangle is read; numpy arrays."""
    return scipy.linalg.solve_triangular(triangle, right)


@_on_one_thread
def least_squares(design: Any, wanted: Any) -> Any:
    """The weights (k,) or (k, m) that bring design (n, k) @ weights nearest to `wanted` (n,) or (n, m); numpy arrays."""
    return np.linalg.lstsq(design, wanted, rcond=None)[0]


@_on_one_thread
def pseudo_inverse(matrix: Tensor) -> Tensor:
    """The Moore–Penrose inverse (n, m) of a matrix (m, n)."""
    return torch.linalg.pinv(matrix)
