"""Whitened SVD: truncate W C^½, C the uncentred second moment of the inputs, and undo the whitening. The peer to beat."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from compress.methods.base import Material
from compress.methods.low_rank import LowRankMethod
from compress.numerics.statistics import Moments


class WhitenedSVD(LowRankMethod):
    """min E‖Wx − LRx‖² over the uncentred inputs; the same map as U_r U_rᵀ W with U the eigenvectors of E[y yᵀ]."""

    reference = "SVD-LLM (ICLR 2025), truncation-aware data whitening"

    def input_metric(self, material: Material) -> Tensor:
        return cast(Moments, material.statistics["input"]).second_moment
