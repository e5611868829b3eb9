"""MLP(x) = outer.weight @ (basis @ x) + outer.bias."""

from __future__ import annotations

from compress.kinds.contract import Kind, Name, Positive
from compress.nn.linear import LowRankLinear
from compress.nn.mlp import AffineMLP
from compress.source.pieces import MLPSource


class Affine(Kind):
    """An affine map of a given rank: basis (rank, d_model), outer.weight (d_model, rank)."""

    kind = "affine_mlp"
    replaces = "mlp"
    runtime = AffineMLP

    outer: Name
    d_model: Positive
    rank: Positive

    def torch_mlp(self, layer: int) -> MLPSource:
        """What the low-rank linear computes: the file has no loader for whose sake the names would matter."""
        tensors = {"basis": "basis", "weight": f"{self.outer}.weight", "bias": f"{self.outer}.bias"}
        return MLPSource(
            f"LowRankLinear(D_MODEL, D_MODEL, rank={self.rank!r}, bias=True)", tensors, LowRankLinear, "LowRankLinear"
        )
