"""A linear whose inputs have changed: the regression of what it gave on what it now reads, drawn towards the weights it had.

Inputs x became x'. W' = W + W (K − C') (C' + λ m I)⁻¹, K = E[x x'ᵀ], C' = E[x' x'ᵀ], m the mean diagonal of C'.
This is ridge regression of the correction, not of the weights: λ → ∞ leaves W. Few tokens overfit, and one enormous activation
per window dominates C': λ is chosen on windows the regression has not seen. Moments are about the means where the bias may move
with the weights, and about zero where it has none: there an offset could not be kept.
"""

from __future__ import annotations

import math
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
        weighed = self.weighed(weight)
        # Over one dimension, then the other: a sum over all elements at once is cut by the number of threads.
        return float((fitted * weighed).sum(dim=0).sum() + rest @ self.weighed(rest))

    def weighed(self, value: Tensor) -> Tensor:
        """metric @ value."""
        return value if self.metric is None else self.metric @ value


class Regression:
    """The corrections of every linear that reads the same changed inputs: one eigendecomposition for all of them and every λ.

    `fitted_on` gives the corrections, `held_out` chooses between them; `free_bias` says whether a bias moves with the weights.
    """

    def __init__(self, fitted_on: CrossMoments, held_out: CrossMoments, free_bias: bool) -> None:
        means = fitted_on.target_mean, fitted_on.input.mean
        # A free bias makes the means over `fitted_on` agree, wherever the rows are that are judged.
        self._means = means if free_bias else tuple(torch.zeros_like(mean) for mean in means)
        read, change = self._about(fitted_on)
        values, self._vectors = eigh(read)
        # Rounding leaves a singular C' with eigenvalues just below 0; with a small λ they could make a divisor 0.
        self._values = values.clamp_min(0)
        self._change = change @ self._vectors  # (K − C') V
        seen, missed = self._about(held_out)
        self._missed = missed @ self._vectors  # the same of the held-out rows, in these eigenvectors
        self._seen = self._vectors.T @ seen @ self._vectors

    def _about(self, moments: CrossMoments) -> tuple[Tensor, Tensor]:
        """(C', K − C') about the means that a free bias would remove, else about zero."""
        shift, drift = moments.target_mean - self._means[0], moments.input.mean - self._means[1]
        read = moments.input.covariance + torch.outer(drift, drift)
        return read, moments.cross_covariance + torch.outer(shift, drift) - read

    def best(self, target: Target) -> tuple[float, Tensor, Tensor]:
        """(λ, weight, bias) of the least error on the held-out rows, float64; λ = inf is the target itself.

        Never worse there than the target, and where nothing was read it is the target. λ → 0 is ordinary least squares.
        """
        mean = float(self._values.mean())
        if not mean > 0:  # nothing was read: nothing to regress on
            return math.inf, target.weight, target.bias
        # W' = W + Δ S Vᵀ with S = (Λ + λ m I)⁻¹, so that in the eigenvectors
        # E‖W x − W' x'‖² − E‖W x − W x'‖² = tr(Δ S C' S Δᵀ) − 2 tr(Δ S (W (K − C'))ᵀ), and only S changes with λ.
        change = target.weight @ self._change
        weighed = target.weighed(change)
        curved = (change.T @ weighed) * self._seen
        sloped = (weighed * (target.weight @ self._missed)).sum(dim=0)
        # Nothing moved is where a correction starts from: it must beat that on rows it has not seen to be taken at all.
        best, least = math.inf, 0.0
        for shrinkage in SHRINKAGES:
            scales = 1 / (self._values + shrinkage * mean)
            gained = float(scales @ curved @ scales - 2 * sloped @ scales)
            if gained < least:
                best, least = shrinkage, gained
        return best, *self.at(target, best)

    def at(self, target: Target, shrinkage: float) -> tuple[Tensor, Tensor]:
        """(weight, bias) of a target at one λ."""
        if math.isinf(shrinkage):
            return target.weight, target.bias
        change = target.weight @ self._change / (self._values + shrinkage * self._values.mean())
        weight = target.weight + change @ self._vectors.T
        # The bias that makes the means agree, E[W x + b] = E[W' x' + b']; without one both means count as zero.
        return weight, target.bias + target.weight @ self._means[0] - weight @ self._means[1]
