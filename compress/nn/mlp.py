"""MLP replacements without expressions. Torch only: the standalone exporter inlines these classes' source.

Each occupies the replaced MLP's own output projection (`outer`, e.g. `down_proj`) with a tensor of another shape, so that a
loader that does not know these classes stops instead of initialising the missing weights at random.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Occupied(nn.Module):
    """Holds an empty `weight` under a replaced parameter's name; computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0))


class PassThrough(nn.Module):
    """f(x) = x; stands for the inner modules of an MLP that its layer runs inline. `occupied` keeps an empty `weight`."""

    def __init__(self, occupied: bool) -> None:
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.empty(0)) if occupied else None)

    def forward(self, x: Tensor) -> Tensor:
        return x


class IdentityMLP(nn.Module):
    """MLP(x) = x, the published skip control: x is the MLP's own (normed) input."""

    def __init__(self, outer: str) -> None:
        super().__init__()
        self.add_module(outer, Occupied())

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_model) → (..., d_model)"""
        return x


class ZeroMLP(nn.Module):
    """MLP(x) = 0: the residual stream passes unchanged."""

    def __init__(self, outer: str) -> None:
        super().__init__()
        self.add_module(outer, Occupied())

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_model) → zeros (..., d_model)"""
        return torch.zeros_like(x)


class Constant(nn.Module):
    """A `bias` (d_model,) beside an empty `weight`."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0))
        self.bias = nn.Parameter(torch.empty(d_model))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., anything) → bias broadcast to (..., d_model)"""
        return self.bias.expand(*x.shape[:-1], -1)


class MeanMLP(nn.Module):
    """MLP(x) = the mean of the original MLP's outputs over the calibration tokens."""

    def __init__(self, outer: str, d_model: int) -> None:
        super().__init__()
        self.outer_name = outer
        self.add_module(outer, Constant(d_model))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_model) → (..., d_model)"""
        return self.get_submodule(self.outer_name)(x)


class AffineMLP(nn.Module):
    """MLP(x) = outer.weight @ (basis @ x) + outer.bias; basis (rank, d_model), outer.weight (d_model, rank)."""

    def __init__(self, outer: str, d_model: int, rank: int) -> None:
        super().__init__()
        self.outer_name = outer
        self.basis = nn.Parameter(torch.empty(rank, d_model))
        self.add_module(outer, nn.Linear(rank, d_model))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_model) → (..., d_model)"""
        return self.get_submodule(self.outer_name)(F.linear(x, self.basis))
