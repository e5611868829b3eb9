"""Whitened SVD: truncate W C^½, C the uncentred second moment of the inputs, and undo the whitening. The peer to beat."""

from __future__ import annotations

from torch import Tensor

from compress.methods.base import Material
from compress.methods.linear._low_rank import LowRankMethod, merged_inputs


class WhitenedSVD(LowRankMethod):
    """min E‖Wx − LRx‖² over the uncentred inputs; the same map as U_r U_rᵀ W with U the eigenvectors of E[y yᵀ]."""

    reference = "SVD-LLM (ICLR 2025), truncation-aware data whitening"

    def input_metric(self, material: Material) -> Tensor:
        """The inputs' second moment, (d_in, d_in), uncentred."""
        return merged_inputs(material).second_moment
