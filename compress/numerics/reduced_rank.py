"""Reduced-rank regression with extra regressors: y ≈ L R (x − x̄) + D (f − f̄) + ȳ, the linear map of a given rank, D free.

Velu & Reinsel (Multivariate Reduced-Rank Regression, 1998, section 3.1): what the extra regressors f explain is taken out of x
and of y, the rest is an ordinary reduced-rank regression, and D follows by least squares. Without f it is the best affine map
of that rank; with f it cannot be worse, because D = 0 is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.numerics.linalg import factorize, symmetric_sqrt
from compress.numerics.statistics import Moments

_RIDGE = 1e-9  # of the mean variance: what a regressor adds to the others below that is rounding


@dataclass(frozen=True)
class Joint:
    """Means and covariances of x (d,), f (k,) and y (e,), stacked in this order: mean (d + k + e,), covariance square."""

    mean: Tensor
    covariance: Tensor
    inputs: int
    features: int

    def keep(self, chosen: list[int]) -> Joint:
        """The same with some of the features only."""
        outputs = range(self.inputs + self.features, len(self.mean))
        index = torch.tensor([*range(self.inputs), *(self.inputs + k for k in chosen), *outputs])
        return Joint(self.mean[index], self.covariance[index][:, index], self.inputs, len(chosen))

    def error(self, fit: Fit, metric: Tensor) -> float:
        """E‖metric^½ (y − prediction)‖²; the bias counts where the means are not those of the fit."""
        outputs = len(self.mean) - self.inputs - self.features
        # y − prediction = rows [x; f; y] − b: its mean is `shift`, its covariance rows C rowsᵀ.
        rows = torch.cat([-fit.left @ fit.right, -fit.direct, torch.eye(outputs, dtype=torch.float64)], dim=1)
        shift = rows @ self.mean - fit.bias
        return float(torch.trace(metric @ (rows @ self.covariance @ rows.T))) + float(shift @ metric @ shift)


@dataclass(frozen=True)
class Fit:
    """y ≈ left (e, rank) @ right (rank, d) @ x + direct (e, k) @ f + bias (e,)."""

    left: Tensor
    right: Tensor
    direct: Tensor
    bias: Tensor


def solve(joint: Joint, metric: Tensor, rank: int) -> Fit:
    """The minimiser of E‖metric^½ (y − L R x − D f − b)‖² over products L R of `rank`, D and b; float64.

    metric (e, e); `rank` from 0, where only f and the bias are left, to min(d, e).

    >>> x = torch.arange(6.0, dtype=torch.float64)[:, None]
    >>> fit = solve(measured(x, 2 * x + x**2 + 1, x**2), torch.eye(1, dtype=torch.float64), rank=1)
    >>> [round(float(part), 3) for part in (fit.left @ fit.right, fit.direct, fit.bias)]
    [2.0, 1.0, 1.0]
    """
    d, k = joint.inputs, joint.features
    c = joint.covariance
    # Blocks (d, d), (d, k), (k, k), (e, d), (e, k).
    xx, xf, ff, yx, yf = c[:d, :d], c[:d, d : d + k], c[d : d + k, d : d + k], c[d + k :, :d], c[d + k :, d : d + k]
    inverse = _inverse(ff)
    # Velu and Reinsel: what f cannot explain of x and of y, the partial covariances (Schur complements of ff).
    rest_xx, rest_yx = xx - xf @ inverse @ xf.T, yx - yf @ inverse @ xf.T
    if rank:
        # The full-rank regression of one rest on the other, and of that the best approximation of this rank.
        found = factorize(rest_yx @ _inverse(rest_xx), rest_xx, metric)
        left, right = found.truncate(rank)
    else:
        left, right = xx.new_zeros(len(yx), 0), xx.new_zeros(0, d)
    # D for these L R: least squares on f of what L R leaves of y.
    direct = (yf - left @ (right @ xf)) @ inverse
    mean_x, mean_f, mean_y = joint.mean[:d], joint.mean[d : d + k], joint.mean[d + k :]
    return Fit(left, right, direct, mean_y - left @ (right @ mean_x) - direct @ mean_f)


def extend(moments: Moments, x: Tensor, y: Tensor, features: Tensor) -> Joint:
    """The joint moments of x, f and y where f (n, k) is known on a sample x (n, d), y (n, e) only, but x and y on all rows.

    On the sample f is regressed on x; the covariance of its remainder with that of y is taken from there, everything else from
    all rows. So it stays positive semidefinite, is exact in x and y, and exact altogether where the sample is all rows.
    """
    d = x.shape[1]
    full = moments.covariance  # of x and y over all rows, (d + e, d + e)
    inverse = _inverse(full[:d, :d])
    weight = full[d:, :d] @ inverse  # y on x
    mean_x, mean_f, mean_y = x.mean(dim=0), features.mean(dim=0), y.mean(dim=0)
    centred = x - mean_x
    slope = ((features - mean_f).T @ centred / len(x)) @ _inverse(centred.T @ centred / len(x))  # f on x
    rest_f = features - mean_f - centred @ slope.T
    rest_y = y - mean_y - centred @ weight.T
    # cov(f, x) = slope · cov(x, x): the remainder of f is uncorrelated with x on the sample. So all rows count here.
    fx = slope @ full[:d, :d]
    # Of the remainders only the sample knows the covariances, (k, k) and (k, e).
    ff = fx @ slope.T + rest_f.T @ rest_f / len(x)
    fy = slope @ full[:d, d:] + rest_f.T @ rest_y / len(x)
    rows = [
        torch.cat([full[:d, :d], fx.T, full[:d, d:]], dim=1),
        torch.cat([fx, ff, fy], dim=1),
        torch.cat([full[d:, :d], fy.T, full[d:, d:]], dim=1),
    ]
    mean = torch.cat([moments.mean[:d], mean_f + slope @ (moments.mean[:d] - mean_x), moments.mean[d:]])
    return Joint(mean, torch.cat(rows), d, features.shape[1])


def measured(x: Tensor, y: Tensor, features: Tensor) -> Joint:
    """The joint moments of rows x (n, d), features (n, k) and y (n, e) that are all there; float64."""
    moments = Moments(x.shape[1] + features.shape[1] + y.shape[1])
    moments.update(torch.cat([x, features, y], dim=1))
    return Joint(moments.mean, moments.covariance, x.shape[1], features.shape[1])


def _inverse(covariance: Tensor) -> Tensor:
    """(C + ridge)⁻¹ by its eigenvalues: regressors that repeat each other, and none at all (0, 0), are no obstacle."""
    _, inverse_root = symmetric_sqrt(covariance, _RIDGE)
    return inverse_root @ inverse_root
