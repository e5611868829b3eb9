from __future__ import annotations

from torch import nn

from compress.kinds.contract import Kind, Name, Place, Positive, Work
from gated_mlp.runtime import GatedMLP


class Gated(Kind):
    """One hidden layer of values behind sigmoid gates."""

    kind = "gated_mlp"
    replaces = "mlp"
    runtime = GatedMLP

    outer: Name
    d_model: Positive
    hidden: Positive

    def work(self, module: nn.Module, place: Place) -> Work:
        return Work(3 * self.hidden * self.d_model)  # the outer weight has three dimensions
