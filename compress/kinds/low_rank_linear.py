"""y = weight @ (basis @ x) + bias."""

from __future__ import annotations

from torch import Tensor, nn

from compress.kinds.contract import Kind, Moves, Positive
from compress.nn.linear import LowRankLinear


class LowRank(Kind):
    """A linear in two factors: weight (out_features, rank), basis (rank, in_features)."""

    kind = "low_rank_linear"
    replaces = "linear"
    runtime = LowRankLinear

    in_features: Positive
    out_features: Positive
    rank: Positive
    bias: bool

    def move_outputs(self, channels: Tensor) -> Moves:
        """Rows of the outer factor, and the bias with them."""
        # Without a bias there is no such tensor, and nothing to move.
        return {"weight": (0, channels), "bias": (0, channels)}

    def move_inputs(self, channels: Tensor) -> Moves:
        """Columns of the basis."""
        return {"basis": (1, channels)}

    def dense_twin(self) -> nn.Linear:
        """A linear of the same shape, as the original was."""
        return nn.Linear(self.in_features, self.out_features, bias=self.bias)
