"""Linear replacements. Torch only: the standalone exporter inlines these classes' source."""
# nn.Linear.__init__ has no types, and its forward calls x `input`; the classes are copied, so the note is here.
# pyright: reportUnknownMemberType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LowRankLinear(nn.Module):
    """y = weight @ (basis @ x) + bias, with weight (out_features, rank) and basis (rank, in_features)."""

    bias: Tensor | None

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
    """`rank` rows of the product are kept, the others are combinations of them: y = [p; weight @ p][order] + bias, p = basis
    @ x.

    basis (rank, in_features), weight (out_features − rank, rank), order (out_features,) the row of [p; weight @ p] each
    output reads. Stores rank·(in_features + out_features − rank) numbers: never more than dense; and `order`, unless the
    modules that read the outputs take them as they come (reorder=False).
    """

    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool, reorder: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank, self.reorder = in_features, out_features, rank, reorder
        self.weight = nn.Parameter(torch.empty(out_features - rank, rank))
        self.basis = nn.Parameter(torch.empty(rank, in_features))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)
        if reorder:
            self.register_buffer("order", torch.zeros(out_features, dtype=torch.int32))

    order: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) → (..., out_features)"""
        pivots = F.linear(x, self.basis)  # (..., rank)
        y = torch.cat([pivots, F.linear(pivots, self.weight)], dim=-1)
        if self.reorder:
            y = y.index_select(-1, self.order)
        return y if self.bias is None else y + self.bias


class SharedLinear(nn.Module):
    """A low-rank (or pivoted) linear whose basis may belong to another module: y = rows(weight, p) + bias, p = owner.basis @ x.

    The owner (owner=None) stores basis (rank, in_features); the others are linked to it after the model is built. Modules
    that get the very same tensor compute p once: the last p is kept until another input comes. Where the graph is compiled or
    exported the product is written out each time and common-subexpression elimination merges it. weight (stored_rows, rank):
    stored_rows = out_features in plain form; fewer in pivoted form, where `order` (out_features,) says which row of [p;
    weight @ p] each output reads.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool, stored_rows: int, owner: str | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank, self.owner = in_features, out_features, rank, owner
        self.weight = nn.Parameter(torch.empty(stored_rows, rank))
        self.register_parameter("basis", nn.Parameter(torch.empty(rank, in_features)) if owner is None else None)
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)
        self.pivoted = stored_rows < out_features
        if self.pivoted:
            self.register_buffer("order", torch.zeros(out_features, dtype=torch.int32))
        self._owner: tuple[nn.Module, ...] = (self,) if owner is None else ()
        self._last: tuple[Tensor, int, Tensor] | None = None

    order: Tensor
    basis: Tensor  # None where another module owns it
    bias: Tensor | None

    def link(self, owner: nn.Module) -> None:
        """Read the basis of `owner`; in a tuple, so that its parameters are listed once."""
        self._owner = (owner,)

    def latent(self, x: Tensor) -> Tensor:
        """p = basis @ x, (..., rank)"""
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return F.linear(x, self.basis.to(x.device))
        version = 0 if x.is_inference() else x._version  # an input changed in place is another input
        if self._last is None or self._last[0] is not x or self._last[1] != version:
            self._last = (x, version, F.linear(x, self.basis.to(x.device)))
        return self._last[2]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) → (..., out_features)"""
        owner: Any = self._owner[0]
        p = owner.latent(x)
        y = F.linear(p, self.weight)
        if self.pivoted:
            y = torch.cat([p, y], dim=-1).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias


class DenseLinear(nn.Linear):
    """A plain linear of another shape, or with a bias the original did not have: pruned channels, dense fall-backs.

    With `extra_bias` the bias is the last column of weight (out_features, in_features + 1): in the original's own shape a
    loader that does not know this class would read the weight and drop the bias.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, extra_bias: bool = False) -> None:
        if bias and extra_bias:
            raise ValueError("a dense_linear has `bias` or `extra_bias`, not both: the latter is for an original without one")
        super().__init__(in_features + extra_bias, out_features, bias=bias)
        self.in_features, self.extra_bias = in_features, extra_bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) → (..., out_features)"""
        if self.extra_bias:
            return F.linear(x, self.weight[:, :-1], self.weight[:, -1])
        return super().forward(x)

    def multiply_adds(self, context: int) -> int:
        """Of one token, whatever the context: a bias is added, not multiplied."""
        return self.in_features * self.out_features
