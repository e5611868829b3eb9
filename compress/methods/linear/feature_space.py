"""Feature-space decomposition: keep the leading principal components of a linear's calibrated outputs."""

from __future__ import annotations

from torch import Tensor

from compress.methods.base import Material
from compress.methods.linear._low_rank import LowRankMethod, merged_inputs


class FeatureSpace(LowRankMethod):
    """W ≈ V_r V_rᵀ W with V the eigenvectors of the centred output covariance W cov(x) Wᵀ; the bias restores the dropped
    mean.
    """

    reference = "SFSD-LLM (ACL 2024), feature-space decomposition"

    def input_metric(self, material: Material) -> Tensor:
        """The inputs' covariance, (d_in, d_in)."""
        return merged_inputs(material).covariance

    def mean_input(self, material: Material) -> Tensor:
        """The inputs' mean, (d_in,)."""
        return merged_inputs(material).mean
