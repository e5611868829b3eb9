"""MLP(x) = the mean of its outputs over the calibration tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from compress.kinds.contract import Kind, Name, Positive
from compress.nn.mlp import MeanMLP
from compress.source.pieces import MLPSource

_CLASS = '''\
class MeanMLP(nn.Module):
    """MLP(x) = the mean of the original MLP's outputs over the calibration tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.empty(D_MODEL))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) → (B, T, D), the same for every token"""
        return self.mean.expand_as(x)'''


class Mean(Kind):
    """The mean is the bias of `outer`, the replaced MLP's own output projection, whose weight is empty."""

    kind = "mean_mlp"
    replaces = "mlp"
    runtime = MeanMLP

    outer: Name
    d_model: Positive

    def torch_mlp(self, layer: int) -> MLPSource:
        """A parameter of its own, from the place of the output projection's bias."""
        return MLPSource("MeanMLP()", {"mean": f"{self.outer}.bias"}, told="MeanMLP")

    @classmethod
    def torch_classes(cls, placed: Mapping[int, Self]) -> Sequence[str]:
        """One class for all these layers."""
        return (_CLASS,)
