"""MLP(x) = x, the published skip control."""

from __future__ import annotations

from compress.kinds.contract import Kind, Name
from compress.nn.mlp import IdentityMLP
from compress.source.pieces import MLPSource


class Identity(Kind):
    """`outer` is the replaced MLP's own output projection, whose place an empty weight holds."""

    kind = "identity_mlp"
    replaces = "mlp"
    runtime = IdentityMLP

    outer: Name

    def torch_mlp(self, layer: int) -> MLPSource:
        """torch's own module."""
        return MLPSource("nn.Identity()", {}, told="nn.Identity")  # {}: no tensors; None would be all
