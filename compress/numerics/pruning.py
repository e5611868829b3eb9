"""Which input channels of a linear to keep, and the least-squares refit on those: optimal brain surgeon over channels.

Hassibi and Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon", with channels for weights, as
in Kurtic, Frantar and Alistarh 2023, "ZipLM: Inference-aware structured pruning"; the Hessian is the channels' covariance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.numerics import lapack
from compress.numerics.conventions import damped

DAMPING = 1e-6  # of the mean channel variance


def prune(weight: Tensor, covariance: Tensor, metric: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """(kept channel indices (keep,), refitted weight (d_out, keep)) for y = weight @ h, h with this covariance.

    One channel goes at a time: the one whose removal raises tr(metric · error covariance) least when all others are refitted,
    which is (wᵀ metric w)_j / (covariance⁻¹)_jj; both are then downdated. The end result is the least-squares refit on what
    is kept, of the covariance damped by DAMPING. weight (d_out, d_ff), covariance (d_ff, d_ff), metric (d_out, d_out), all
    float64; kept indices rise.

    >>> identity = torch.eye(3, dtype=torch.float64)
    >>> prune(torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)), identity, identity, keep=2)[0].tolist()
    [0, 2]
    """
    d_ff = weight.shape[1]
    covariance = damped(covariance, DAMPING, empty=1.0)  # 1: no channel ever fired, and any may go
    inverse = lapack.inverse(covariance)
    current = weight.clone()
    gone = torch.zeros(d_ff, dtype=torch.bool)
    for _ in range(d_ff - keep):
        # (wᵀ metric w)_jj of every channel, (d_ff,), without the (d_ff, d_ff) product.
        energy = (current * (metric @ current)).sum(0)
        # Optimal brain surgeon's saliency of a weight, w² / (H⁻¹)_jj, with a whole column for w.
        cost = torch.where(gone, torch.inf, energy / inverse.diagonal().clamp_min(1e-300))
        j = int(cost.argmin())
        # The others take over: δW = −w_j (H⁻¹)_j / (H⁻¹)_jj, which also makes column j itself zero.
        row = inverse[j] / inverse[j, j]
        current -= current[:, j : j + 1] * row
        # H⁻¹ of the channels that are left: a rank-one downdate, O(d_ff²), in place of an inverse, O(d_ff³).
        inverse -= torch.outer(inverse[:, j], row)
        # Exactly zero, where rounding leaves a little: a channel that is gone must not come back through the others.
        inverse[j], inverse[:, j] = 0.0, 0.0
        inverse[j, j] = 1.0
        gone[j] = True
    kept = torch.nonzero(~gone).flatten()
    # From the matrices as given, not `current`, in which the rounding of every downdate has added up.
    refitted = lapack.solve(covariance[kept][:, kept], covariance[kept] @ weight.T).T
    return kept, refitted
