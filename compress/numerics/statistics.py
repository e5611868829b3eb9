"""Streaming moments of activation rows, float64, mergeable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self

import torch
from torch import Tensor

from compress.numerics.products import add_crossed, add_squares, added_on
from compress.parallel.lanes import Summable


class Statistic(Summable, Protocol):
    """update(rows, start) folds in rows (n, d) whose first row has the global token index `start`."""

    def update(self, rows: Tensor, start: int) -> None: ...

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps, and a method reads."""
        ...


class Moments:
    """Mean and scatter of the rows x (n, d), accumulated about the running mean (Chan, Golub, LeVeque 1983) in float64.

    >>> rows = torch.arange(12.0).reshape(4, 3)
    >>> moments = Moments(3)
    >>> moments.update(rows[:1]); moments.update(rows[1:])
    >>> bool(torch.allclose(moments.covariance, torch.cov(rows.double().T, correction=0)))
    True
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self._moment = torch.zeros(size, size, dtype=torch.float64)  # Σ (x − mean)(x − mean)ᵀ / divisor
        self._divisor = 1

    def update(self, rows: Tensor, start: int = 0) -> None:
        """Fold in rows (n, d) of any float dtype."""
        if not self.count:
            self.move(added_on(rows.device))
        self._combine(rows.shape[0], add_crossed(self._divided_by(1), rows, rows)[0])

    def merge(self, other: Self) -> None:
        """Fold in another accumulator of the same size; the order of merging changes only rounding."""
        if other.count:
            # A merged part brings its scatter divided by its count.
            self._divided_by(1).add_(other.covariance, alpha=other.count)
            self._combine(other.count, other.mean)

    def settle(self) -> None:
        """No more rows of a device will come: from here on the host has it."""
        self.move(torch.device("cpu"))

    def move(self, device: torch.device) -> None:
        """Keep the sums on a device."""
        self.mean, self._moment = self.mean.to(device), self._moment.to(device)

    def _combine(self, count: int, mean: Tensor) -> None:
        """After the scatter of a part, about its own mean, was added."""
        total = self.count + count  # ≥ 1: an empty accumulator is never combined
        # Chan, Golub and LeVeque: the scatter of two parts is S₁ + S₂ + δ δᵀ n₁ n₂ / n, δ the difference of their means.
        delta = mean - self.mean
        self._divided_by(1).addr_(delta, delta, alpha=self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total

    def _divided_by(self, divisor: int) -> Tensor:
        """The scatter over `divisor`, in place: a wide layer's is hundreds of megabytes, and one copy of it is enough."""
        if divisor != self._divisor:
            self._moment *= self._divisor / divisor
            self._divisor = divisor
        return self._moment

    @property
    def covariance(self) -> Tensor:
        """Centred, (d, d): scatter / count. The accumulator's own memory: read it before the next update, never write it."""
        return self._divided_by(max(self.count, 1))

    @property
    def second_moment(self) -> Tensor:
        """Uncentred, (d, d): XᵀX / n."""
        # E[x xᵀ] = cov + E[x] E[x]ᵀ, in memory of its own, unlike `covariance`.
        return torch.addr(self.covariance, self.mean, self.mean)

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps: count (1,), mean (d,), covariance (d, d)."""
        return {"count": torch.tensor([self.count]), "mean": self.mean, "covariance": self.covariance}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The accumulator that `tensors` came from; it goes on in the memory of these."""
        out = cls(tensors["mean"].shape[0])
        out.count, out.mean, out._moment = int(tensors["count"]), tensors["mean"], tensors["covariance"]
        # Stored is the scatter already divided by the count.
        out._divisor = max(out.count, 1)
        return out

    state, from_state = tensors, from_tensors


class CrossMoments:
    """Moments of x (n, d) together with its centred cross moment with targets y (n, e), float64: what a regression of y on x
    needs.
    """

    def __init__(self, size: int, targets: int) -> None:
        self.input = Moments(size)
        self.target_mean = torch.zeros(targets, dtype=torch.float64)
        self._cross = torch.zeros(targets, size, dtype=torch.float64)  # Σ (y − mean)(x − mean)ᵀ

    def update(self, rows: Tensor, targets: Tensor) -> None:
        """Fold in x (n, d) and y (n, e) of any float dtype, row by row together."""
        if not self.input.count:
            self.move(added_on(rows.device))
        mean_y, mean_x = add_crossed(self._cross, targets, rows)
        self._shift(rows.shape[0], mean_x, mean_y)
        self.input.update(rows)

    def merge(self, other: Self) -> None:
        """Fold in another accumulator of the same sizes; the order of merging changes only rounding."""
        if other.input.count:
            self._cross.add_(other._cross)
            self._shift(other.input.count, other.input.mean, other.target_mean)
            self.input.merge(other.input)

    def settle(self) -> None:
        """No more rows of a device will come: from here on the host has it."""
        self.move(torch.device("cpu"))

    def move(self, device: torch.device) -> None:
        """Keep the sums on a device."""
        self.input.move(device)
        self.target_mean, self._cross = self.target_mean.to(device), self._cross.to(device)

    def _shift(self, count: int, mean_x: Tensor, mean_y: Tensor) -> None:
        """Parts are centred on their own means: what these differ by is the rank-one term. Before `input` takes the part."""
        before = self.input.count
        delta_x, delta_y = mean_x - self.input.mean, mean_y - self.target_mean
        self._cross.addr_(delta_y, delta_x, alpha=before * count / (before + count))
        self.target_mean += delta_y * (count / (before + count))

    @property
    def cross_covariance(self) -> Tensor:
        """E[(y − E y)(x − E x)ᵀ], (e, d)."""
        return self._cross / max(self.input.count, 1)

    def state(self) -> dict[str, Tensor]:
        """All of it, to go on with elsewhere."""
        return {**self.input.state(), "target_mean": self.target_mean, "cross": self._cross}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The accumulator that `tensors` came from; it goes on in the memory of these."""
        out = cls(0, 0)
        out.input = Moments.from_state(tensors)
        out.target_mean, out._cross = tensors["target_mean"], tensors["cross"]
        return out


class Spread:
    """Mean and variance of each dimension of the rows x (n, d), float64.

    >>> spread = Spread(2)
    >>> spread.update(torch.tensor([[1.0, 5.0]])); spread.update(torch.tensor([[3.0, 5.0]]))
    >>> spread.mean.tolist(), spread.variance.tolist()
    ([2.0, 5.0], [1.0, 0.0])
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self._squares = torch.zeros(size, dtype=torch.float64)  # Σ (x − mean)²

    def update(self, rows: Tensor, start: int = 0) -> None:
        """Fold in rows (n, d) of any float dtype."""
        rows = rows.cpu().to(torch.float64)
        mean = rows.mean(dim=0)
        self._fold(rows.shape[0], mean, (rows - mean).square().sum(dim=0))

    def merge(self, other: Self) -> None:
        """Fold in another accumulator of the same size."""
        self._fold(other.count, other.mean, other._squares)

    def settle(self) -> None:
        """It is on the host."""

    def _fold(self, count: int, mean: Tensor, squares: Tensor) -> None:
        total, delta = self.count + count, mean - self.mean
        self._squares += squares + delta.square() * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Of all rows, (d,)."""
        return self._squares / max(self.count, 1)

    def tensors(self) -> dict[str, Tensor]:
        """All of it: count (1,), mean (d,), squares (d,)."""
        return {"count": torch.tensor([self.count]), "mean": self.mean, "squares": self._squares}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The accumulator that `tensors` came from; it goes on in the memory of these."""
        out = cls(0)
        out.count, out.mean, out._squares = int(tensors["count"]), tensors["mean"], tensors["squares"]
        return out

    state = tensors


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
        if not self.count:
            self._sum = self._sum.to(added_on(rows.device))
        add_squares(self._sum, rows.transpose(0, 1))  # of (heads, n, size)
        self.count += rows.shape[0]

    def merge(self, other: Self) -> None:
        """Fold in another accumulator of the same sizes."""
        self._sum += other._sum
        self.count += other.count

    def settle(self) -> None:
        """No more rows of a device will come: from here on the host has it."""
        self._sum = self._sum.cpu()

    @property
    def second_moment(self) -> Tensor:
        """Uncentred, (heads, size, size): XᵀX / n of every head."""
        return self._sum / max(self.count, 1)

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps: count (1,), second_moment (heads, size, size)."""
        return {"count": torch.tensor([self.count]), "second_moment": self.second_moment}

    def state(self) -> dict[str, Tensor]:
        """All of it, to go on with elsewhere."""
        return {"count": torch.tensor([self.count]), "sum": self._sum}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The moments that `tensors` came from; they go on in the memory of these."""
        out = cls(0, 0)
        out.count, out._sum = int(tensors["count"]), tensors["sum"]
        return out
