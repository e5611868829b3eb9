"""What runs. Imports torch only: this source is copied into files that stand alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GatedOutput(nn.Module):
    """y = weight h + bias; the weight has one dimension more than the projection whose name it takes."""

    def __init__(self, hidden: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, d_model, hidden))
        self.bias = nn.Parameter(torch.empty(d_model))

    def forward(self, h: Tensor) -> Tensor:
        """h (..., hidden) → (..., d_model)"""
        return nn.functional.linear(h, self.weight[0], self.bias)


class GatedMLP(nn.Module):
    """MLP(x) = outer(sigmoid(A x + a) * (B x + b)) + c."""

    def __init__(self, outer: str, d_model: int, hidden: int) -> None:
        super().__init__()
        self.outer_name = outer
        self.gate = nn.Linear(d_model, hidden)
        self.value = nn.Linear(d_model, hidden)
        self.add_module(outer, GatedOutput(hidden, d_model))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_model) → (..., d_model)"""
        return self.get_submodule(self.outer_name)(self.gate(x).sigmoid() * self.value(x))
