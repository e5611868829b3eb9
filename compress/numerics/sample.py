"""A seeded sample of activation rows, the same whatever order and parts they come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor


class Sample:
    """A seeded sample of `rows` of the `total` rows that will pass, drawn before any is seen, so that any order of updates
    agrees.

    Rows keep their own float dtype; `rows` is capped at `total`.

    >>> whole, parts, rows = Sample(2, 9, seed=0), Sample(2, 9, seed=0), torch.arange(9.0)[:, None]
    >>> whole.update(rows, 0); parts.update(rows[5:], 5); parts.update(rows[:5], 0)
    >>> torch.equal(whole.values, parts.values), whole.values.flatten().tolist() == whole.index.tolist()
    (True, True)
    """

    def __init__(self, rows: int, total: int, seed: int) -> None:
        rows = min(rows, total)
        # Sorted, so that a part finds its rows by bisection.
        self.index = np.sort(np.random.default_rng(seed).choice(total, size=rows, replace=False))
        self._kept: dict[int, Tensor] = {}  # global row index of a part's first kept row → kept rows

    def update(self, rows: Tensor, start: int) -> None:
        """rows (n, d), of which the first is row `start` of the whole stream."""
        low, high = np.searchsorted(self.index, [start, start + rows.shape[0]])
        if high > low:
            # By position in the stream, not by arrival: parts may come in any order.
            wanted = torch.as_tensor(self.index[low:high] - start)
            self._kept[int(self.index[low])] = rows[wanted].clone()

    def settle(self) -> None:
        """No more rows of a device will come: from here on the host has it."""
        self._kept = {start: rows.cpu() for start, rows in self._kept.items()}

    def merge(self, other: Self) -> None:
        """Fold in the rows another accumulator of the same rows, total and seed has seen: parts of the stream, each once."""
        self._kept.update(other._kept)

    @property
    def values(self) -> Tensor:
        """Kept rows (≤ rows, d) in stream order, float64. Raises ValueError where no row has passed yet."""
        return torch.cat([self._kept[k] for k in sorted(self._kept)]).to(torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps: values (≤ rows, d)."""
        return {"values": self.values}

    def state(self) -> dict[str, Tensor]:
        """All of it, to go on with elsewhere."""
        return {"index": torch.as_tensor(self.index), **{str(start): rows for start, rows in self._kept.items()}}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The sample that `tensors` came from."""
        out = cls(0, 0, seed=0)
        out.index = tensors["index"].numpy()
        out._kept = {int(start): rows for start, rows in tensors.items() if start != "index"}
        return out
