"""Plain truncated SVD of the weight: no data, the control of every data-aware method. Its row-centred twin is the published
PCA.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from compress.architecture import Architecture
from compress.methods.base import Group, Material, Need
from compress.methods.linear._low_rank import LowRankMethod


class WeightSVD(LowRankMethod):
    """W ≈ U_r S_r V_rᵀ, the nearest matrix of rank r in the Frobenius norm."""

    reference = "Eckart & Young 1936; weight PCA of edwinhere/surgery; the weight-space twin in SFSD-LLM, ACL 2024"

    centre: Literal["none", "rows"] = Field(
        "none", description="rows: PCA about the mean row, as published, with the mean dropped on reconstruction"
    )

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        """Nothing of the inputs; with `fisher` the moments of the loss gradient."""
        # No data: of a loss-weighted one only the gradient's moments are left.
        return {k: need for k, need in super().needs(group, architecture).items() if not k.startswith("input:")}

    def target(self, weight: Tensor) -> Tensor:
        """The published PCA decomposes W − mean row and never adds the mean back."""
        return weight - weight.mean(dim=0) if self.centre == "rows" else weight

    def input_metric(self, material: Material) -> Tensor | None:
        """None: all directions of the input count alike."""
        return None
