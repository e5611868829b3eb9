"""A linear whose inputs have changed: the regression of what it gave on what it now reads, drawn towards the weights it had.

Inputs x became x'. W' = W + W (K − C') (C' + λ m I)⁻¹, K = E[x x'ᵀ], C' = E[x' x'ᵀ], m the mean diagonal of C'.
This is ridge regression of the correction, not of the weights: λ → ∞ leaves W. Few tokens overfit, and one enormous activation
per window dominates C': λ is chosen on windows the regression has not seen. Moments are about the means where the bias may move
with the weights, and about zero where it has none: there an offset could not be kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.numerics.lapack import eigh
from compress.numerics.statistics import CrossMoments

SHRINKAGES = tuple(10.0 ** (k / 2) for k in range(-8, 3))  # λ from 1e-4 to 10


@dataclass(frozen=True)
class Target:
    """What a linear should give: weight (d_out, d_in) and bias (d_out,) on x; errors count by metric (d_out, d_out)."""

    weight: Tensor
    bias: Tensor
    metric: Tensor | None = None

    def error(self, weight: Tensor, bias: Tensor, moments: CrossMoments) -> float:
        """E‖metric^½ (W x + b − weight x' − bias)‖² over the rows of `moments`, less a part that no weight changes."""
        # Centred, E‖W x − W' x'‖² = tr(W' C' W'ᵀ) − 2 tr(W K W'ᵀ) + tr(W C Wᵀ); the last term is the same for every W'.
        fitted = weight @ moments.input.covariance - 2 * self.weight @ moments.cross_covariance
        # What the means alone are off by.
        rest = self.weight @ moments.target_mean + self.bias - weight @ moments.input.mean - bias
        if self.metric is None:
            return float((fitted * weight).sum() + rest @ rest)
        return float((fitted * (self.metric @ weight)).sum() + rest @ self.metric @ rest)


def corrected(target: Target, moments: CrossMoments, free_bias: bool) -> Iterator[tuple[float, Tensor, Tensor]]:
    """(λ, weight, bias) for every λ of SHRINKAGES, float64; the bias moves only where it is free to.

    Equivalent for λ → 0 to ordinary least squares of W x + b on x'.
    """
    read, crossed = moments.input.covariance, moments.cross_covariance
    if not free_bias:
        # About zero instead of the means: E[x x'ᵀ] = cov(x, x') + E[x] E[x']ᵀ.
        read = moments.input.second_moment
        crossed = crossed + torch.outer(moments.target_mean, moments.input.mean)
    # One eigendecomposition for every λ: (C' + λ m I)⁻¹ = V (Λ + λ m I)⁻¹ Vᵀ, with V in `drift` and in the last factor.
    values, vectors = eigh(read)
    # Rounding leaves a singular C' with eigenvalues just below 0; with a small λ they could make a divisor 0.
    values = values.clamp_min(0)
    mean = float(values.mean())
    if not mean > 0:  # nothing was read: nothing to regress on
        return
    drift = target.weight @ (crossed - read) @ vectors
    for shrinkage in SHRINKAGES:
        weight = target.weight + (drift / (values + shrinkage * mean)) @ vectors.T
        # The bias that makes the means agree: E[W x + b] = E[W' x' + b'].
        moved = target.weight @ moments.target_mean - weight @ moments.input.mean
        yield shrinkage, weight, target.bias + moved if free_bias else target.bias


def best_correction(
    target: Target, fitted_on: CrossMoments, held_out: CrossMoments, free_bias: bool
) -> tuple[float, Tensor, Tensor]:
    """The (λ, weight, bias) of least error on rows that were held out; λ = inf is the target itself.

    Never worse there than the target, and where nothing was read it is the target.
    """
    # The target comes first: a correction must beat it on rows it has not seen to be taken at all.
    best = (math.inf, target.weight, target.bias)
    least = target.error(target.weight, target.bias, held_out)
    for candidate in corrected(target, fitted_on, free_bias):
        error = target.error(candidate[1], candidate[2], held_out)
        if error < least:
            best, least = candidate, error
    return best
