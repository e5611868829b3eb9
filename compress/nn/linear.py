"""Linear replacements. Torch only: the standalone exporter inlines these classes' source."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LowRankLinear(nn.Module):
    """y = weight @ (basis @ x) + bias, with weight (out_features, rank) and basis (rank, in_features)."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        # The outer factor is named `weight` so that a loader that does not know this class stops on its shape.
        self.weight = nn.Parameter(torch.empty(out_features, rank))
        self.basis = nn.Parameter(torch.empty(rank, in_features))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) → (..., out_features)"""
        return F.linear(F.linear(x, self.basis), self.weight, self.bias)


class PivotedLinear(nn.Module):
    """`rank` rows of the product are kept, the others are combinations of them: y = [p; weight @ p][order] + bias, p = basis @ x.

    basis (rank, in_features), weight (out_features − rank, rank), order (out_features,) the row of [p; weight @ p] each output reads.
    Stores rank·(in_features + out_features − rank) numbers: never more than dense.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.weight = nn.Parameter(torch.empty(out_features - rank, rank))
        self.basis = nn.Parameter(torch.empty(rank, in_features))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)
        self.register_buffer("order", torch.zeros(out_features, dtype=torch.int64))

    order: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) → (..., out_features)"""
        pivots = F.linear(x, self.basis)  # (..., rank)
        y = torch.cat([pivots, F.linear(pivots, self.weight)], dim=-1).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias


class DenseLinear(nn.Linear):
    """A plain linear of another shape, or with a bias the original did not have: pruned channels, dense fall-backs."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
