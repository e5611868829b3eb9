"""Directions of the input that a function depends on: what the expressions of a surrogate read.

All are rows B (count, d) such that the latents B (x − mean) have unit variance and are uncorrelated over the calibration rows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from compress.numerics.conventions import signed
from compress.numerics.lapack import eigvalsh, orthonormal_columns, right_singular_vectors
from compress.numerics.linalg import largest_first, symmetric_sqrt

Kind = Literal["pca", "regression", "gradient"]
_NEGLIGIBLE = 1e-10  # of the largest variance: a direction that calibration never moved along


def moving(covariance: Tensor) -> int:
    """In how many directions rows of this covariance (d, d) vary at all; no kind below finds more.

    >>> moving(torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)))
    2
    """
    values = eigvalsh(covariance)
    return int((values > _NEGLIGIBLE * values[-1]).sum())


def principal(covariance: Tensor, count: int) -> Tensor:
    """Of largest variance: the `count` leading principal components (count, d), each over its standard deviation.

    `count` is at most `moving(covariance)`: a direction without variance has no unit of its own.
    """
    vectors, values = largest_first(covariance)
    # B C Bᵀ = I: every eigenvector over the root of its variance.
    return signed((vectors[:, :count] / values[:count].sqrt()).T, dim=1).contiguous()


def regression(covariance: Tensor, cross: Tensor, count: int) -> Tensor:
    """That predict targets t best by an affine map of this rank (reduced-rank regression), cross = cov(t, x) (e, d).

    Beyond the number of targets the linear prediction has no more directions; the leading principal components that are
    uncorrelated with those found fill up. Returns (count, d). Izenman 1975, "Reduced-rank regression for the multivariate
    linear model".
    """
    root, inverse = symmetric_sqrt(covariance)
    # Izenman: the best map of rank r reads V_rᵀ C^−½ x, V the right singular vectors of cov(t, x) C^−½.
    vectors = right_singular_vectors(cross @ inverse)[:count]
    return _filled(vectors, root, inverse, covariance, count)


def gradient(covariance: Tensor, jacobians: Tensor, count: int, *, per_output: bool = False) -> Tensor:
    """Along which the gradient varies most, jacobians (n, outputs, d): Constantine's active subspace for correlated inputs.

    The mean gradient is taken out, because a linear part needs no expression. `per_output` gives every output an equal share
    of the directions; else they are those of all outputs together. Returns (count, d). Constantine, Dow and Wang 2014,
    "Active subspace methods in theory and practice", in whitened coordinates.
    """
    root, inverse = symmetric_sqrt(covariance)
    # The gradient with respect to u = C^−½ x is C^½ times that with respect to x.
    whitened = (jacobians - jacobians.mean(dim=0)) @ root
    outputs = whitened.shape[1]
    if not per_output:  # rows (n · outputs, d)
        return _filled(_leading(whitened.flatten(0, 1), count), root, inverse, covariance, count)
    # As equal as whole numbers allow; the first outputs get what is left over.
    shares = [count // outputs + (k < count % outputs) for k in range(outputs)]
    found: list[Tensor] = []
    for k, share in enumerate(shares):
        rest = whitened[:, k]
        if found:  # what the directions of earlier outputs leave
            before = torch.cat(found)
            rest = rest - rest @ before.T @ before
        found.append(_leading(rest, share))
    return _filled(torch.cat(found), root, inverse, covariance, count)


def _leading(rows: Tensor, count: int) -> Tensor:
    """Leading eigenvectors of the second moment of rows (n, d), as rows."""
    # The rows' mean is 0 already, so this is their scatter.
    return largest_first(rows.T @ rows)[0][:, :count].T


def _filled(vectors: Tensor, root: Tensor, inverse: Tensor, covariance: Tensor, count: int) -> Tensor:
    """Orthonormal whitened directions (k, d), filled up to `count` by principal ones, as rows B for x."""
    if len(vectors) < count:
        # QR keeps the span of the first k columns, so the found directions stay and what follows is orthogonal to them.
        # C and C^½ have the same eigenvectors: a principal component of x is one of u, too.
        components = largest_first(covariance)[0].T
        vectors = orthonormal_columns(torch.cat([vectors, components]).T).T[:count]
    # From u = C^−½ x back to x: v · u = (v C^−½) · x.
    return signed(vectors @ inverse, dim=1).contiguous()
