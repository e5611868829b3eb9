"""Plain truncated SVD of the weight: no data, the control of every data-aware method."""

from __future__ import annotations

from torch import Tensor

from compress.architecture import Architecture
from compress.methods.base import Group, Material, Need
from compress.methods.low_rank import LowRankMethod
from compress.numerics.linalg import Decomposition, factorize


class WeightSVD(LowRankMethod):
    """W ≈ U_r S_r V_rᵀ, the nearest matrix of rank r in the Frobenius norm."""

    reference = "Eckart & Young 1936; the weight-space twin in SFSD-LLM, ACL 2024"

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        return {}

    def decompose(self, material: Material, weight: Tensor) -> Decomposition:
        return factorize(weight)
