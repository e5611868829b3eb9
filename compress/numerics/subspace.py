"""Directions of the input that a function depends on: what the expressions of a surrogate read.

All are rows B (count, d) such that the latents B (x − mean) have unit variance and are uncorrelated over the calibration rows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from compress.numerics.linalg import symmetric_sqrt

Kind = Literal["pca", "regression", "gradient"]
_NEGLIGIBLE = 1e-10  # of the largest variance: a direction that calibration never moved along


def moving(covariance: Tensor) -> int:
    """In how many directions rows of this covariance (d, d) vary at all."""
    values = torch.linalg.eigvalsh(covariance)
    return int((values > _NEGLIGIBLE * values[-1]).sum())


def principal(covariance: Tensor, count: int) -> Tensor:
    """Of largest variance."""
    values, vectors = torch.linalg.eigh(covariance)
    return _signed((vectors[:, -count:] / values[-count:].sqrt()).flip(1).T)


def regression(covariance: Tensor, cross: Tensor, count: int) -> Tensor:
    """That predict targets t best by an affine map of this rank (reduced-rank regression), cross = cov(t, x) (e, d).

    Beyond the number of targets the linear prediction has no more directions; the leading principal components that are
    uncorrelated with those found fill up.
    """
    root, inverse = symmetric_sqrt(covariance)
    vectors = torch.linalg.svd(cross @ inverse, full_matrices=False)[2][:count]
    return _filled(vectors, root, inverse, covariance, count)


def gradient(covariance: Tensor, jacobians: Tensor, count: int, *, per_output: bool = False) -> Tensor:
    """Along which the gradient varies most, jacobians (n, outputs, d): Constantine's active subspace for correlated inputs.

    The mean gradient is taken out, because a linear part needs no expression. `per_output` gives every output an equal share
    of the directions; else they are those of all outputs together.
    """
    root, inverse = symmetric_sqrt(covariance)
    whitened = (jacobians - jacobians.mean(dim=0)) @ root
    outputs = whitened.shape[1]
    if not per_output:
        return _filled(_leading(whitened.flatten(0, 1), count), root, inverse, covariance, count)
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
    return torch.linalg.eigh(rows.T @ rows)[1].flip(1)[:, :count].T


def _filled(vectors: Tensor, root: Tensor, inverse: Tensor, covariance: Tensor, count: int) -> Tensor:
    """Orthonormal whitened directions (k, d), filled up to `count` by principal ones, as rows B for x."""
    if len(vectors) < count:
        components = torch.linalg.eigh(covariance)[1].flip(1).T
        vectors = torch.linalg.qr(torch.cat([vectors, components]).T)[0].T[:count]
    return _signed(vectors @ inverse)


def _signed(rows: Tensor) -> Tensor:
    """With the largest entry of each row positive: eigh leaves signs open."""
    return (rows * torch.sign(rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)))).contiguous()
