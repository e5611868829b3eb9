"""MLP(x) = 0: the residual stream passes unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from compress.kinds.contract import Kind, Name
from compress.nn.mlp import ZeroMLP
from compress.source.pieces import MLPSource

_CLASS = '''\
class ZeroMLP(nn.Module):
    """MLP(x) = 0: the residual stream passes unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) → zeros (B, T, D)"""
        return torch.zeros_like(x)'''


class Zero(Kind):
    """`outer` is the replaced MLP's own output projection, whose place an empty weight holds."""

    kind = "zero_mlp"
    replaces = "mlp"
    runtime = ZeroMLP

    outer: Name

    def torch_mlp(self, layer: int) -> MLPSource:
        """One module without tensors."""
        return MLPSource("ZeroMLP()", {}, told="ZeroMLP")  # {}: no tensors; None would be all

    @classmethod
    def torch_classes(cls, placed: Mapping[int, Self]) -> Sequence[str]:
        """One class for all these layers."""
        return (_CLASS,)
