"""Uncentred second moments of each head's rows, float64, mergeable."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor


class HeadMoments:
    """Σ x xᵀ / n for every head, of rows x (n, heads, size).

    >>> rows = torch.arange(12.0).reshape(2, 2, 3)
    >>> moments = HeadMoments(2, 3)
    >>> moments.update(rows[:1]); moments.update(rows[1:])
    >>> bool(torch.allclose(moments.second_moment[1], rows[:, 1].double().T @ rows[:, 1].double() / 2))
    True
    """

    def __init__(self, heads: int, size: int) -> None:
        self.count = 0
        self._sum = torch.zeros(heads, size, size, dtype=torch.float64)

    def update(self, rows: Tensor, start: int = 0) -> None:
        """Fold in rows (n, heads, size) of any float dtype."""
        by_head = rows.to(torch.float64).transpose(0, 1)  # (heads, n, size)
        self._sum.baddbmm_(by_head.transpose(1, 2), by_head)
        self.count += rows.shape[0]

    def merge(self, other: Self) -> None:
        """Fold in another accumulator of the same sizes."""
        self._sum += other._sum
        self.count += other.count

    @property
    def second_moment(self) -> Tensor:
        """(heads, size, size)"""
        return self._sum / max(self.count, 1)

    def tensors(self) -> dict[str, Tensor]:
        return {"count": torch.tensor([self.count]), "second_moment": self.second_moment}
