"""`rank` outputs are kept, the others are combinations of them: y = [p; weight @ p][order] + bias, p = basis @ x."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from compress.kinds.contract import Kind, Moves, Positive
from compress.nn.linear import PivotedLinear


class Pivoted(Kind):
    """A linear in pivoted form; without `reorder` its outputs stand as they come, pivots first."""

    kind = "pivoted_linear"
    replaces = "linear"
    runtime = PivotedLinear

    in_features: Positive
    out_features: Positive
    rank: Positive
    bias: bool
    reorder: bool = True

    def move_outputs(self, channels: Tensor) -> Moves:
        """The indices of the gather, and the bias with them."""
        # Outputs pass through a gather anyway: to rearrange them is to rearrange its indices.
        return {"order": (0, channels), "bias": (0, channels)}

    def move_inputs(self, channels: Tensor) -> Moves:
        """Columns of the basis."""
        return {"basis": (1, channels)}

    def as_they_come(self) -> tuple[str, Self] | None:
        """Without the gather, where the order of the outputs does not matter."""
        return ("order", self.model_copy(update={"reorder": False})) if self.reorder else None

    def dense_twin(self) -> nn.Linear:
        """A linear of the same shape, as the original was."""
        return nn.Linear(self.in_features, self.out_features, bias=self.bias)
