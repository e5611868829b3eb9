"""Lanes: windows in micro-batches, micro-batches in lanes, and one fixed tree over the lanes by which everything is summed.

A floating-point sum depends on its order. Here the order hangs on the lanes alone: within a lane micro-batches follow each
other, and lanes are added by the nodes of a binary tree. A process owns a run of lanes, so one process, two or eight add the
same numbers in the same order, and only the nodes that lie across two processes are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

from torch import Tensor


class Summable(Protocol):
    """What lanes add up, and processes send each other."""

    def merge(self, other: Self) -> None:
        """Add another one to this one."""
        ...

    def settle(self) -> None:
        """The lane is done: what grew on a device comes to the host."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All of it, to go on with elsewhere."""
        ...

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The one that `tensors` came from; it may go on in their memory."""
        ...


T = TypeVar("T", bound=Summable)


@dataclass(frozen=True)
class MicroBatch:
    """Windows that go through the model together, and the lane they belong to."""

    lane: int
    windows: slice


def cut(windows: int, micro_batch: int, lanes: int) -> list[MicroBatch]:
    """`windows` in order, in micro-batches spread evenly over the lanes; with few micro-batches some lanes are empty.

    >>> [(m.lane, m.windows.start, m.windows.stop) for m in cut(10, 3, 2)]
    [(0, 0, 3), (0, 3, 6), (1, 6, 9), (1, 9, 10)]
    """
    starts = range(0, windows, micro_batch)
    return [
        MicroBatch(i * lanes // len(starts), slice(start, min(start + micro_batch, windows))) for i, start in enumerate(starts)
    ]


def owned(rank: int, size: int, lanes: int) -> range:
    """The lanes of one process among `size`.

    >>> [owned(rank, 3, 8) for rank in range(3)]
    [range(0, 2), range(2, 5), range(5, 8)]
    """
    return range(rank * lanes // size, (rank + 1) * lanes // size)


@dataclass
class Node(Generic[T]):
    """A value and the lanes it is the sum of: first to last, of which those between may be empty."""

    first: int
    last: int
    value: T


class Tree(Generic[T]):
    """The sum of values by lane, given in the order of the lanes.

    Nodes are merged as soon as no later lane can come between them, so few are held at a time: log₂ of the lanes, and one.
    """

    def __init__(self, own: range) -> None:
        self._own = own
        self._nodes: list[Node[T]] = []

    def add(self, lane: int, value: T) -> None:
        """The value of one more lane, behind all those before it."""
        self._join(lambda start, stop: self._own.start <= start and not start <= lane < stop)
        value.settle()
        self._nodes.append(Node(lane, lane, value))

    def nodes(self) -> list[Node[T]]:
        """What is left when all own lanes were added: a node for each largest subtree among them, one where all are own."""
        self._join(lambda start, stop: self._own.start <= start and stop <= self._own.stop)
        return self._nodes

    def _join(self, complete: Callable[[int, int], bool]) -> None:
        """Merge the last two while the smallest subtree that holds both, its lanes from first to before last, is complete."""
        while len(self._nodes) > 1:
            left, right = self._nodes[-2:]
            if not complete(*subtree(left.first, right.last)):
                return
            left.value.merge(right.value)
            self._nodes[-2:] = [Node(left.first, right.last, left.value)]


def subtree(first: int, last: int) -> tuple[int, int]:
    """(first lane, lane behind the last) of the smallest subtree that holds both lanes.

    >>> subtree(2, 3), subtree(1, 2), subtree(5, 5)
    ((2, 4), (0, 4), (5, 6))
    """
    height = (first ^ last).bit_length()
    start = first >> height << height
    return start, start + (1 << height)


@dataclass(frozen=True)
class Handing:
    """One step of a sum over processes: `giver` sends its node that begins at lane `given` to `taker`, which adds it to its own
    that begins at `taken`. The two are one process where lanes that it does not own are empty.
    """

    giver: int
    given: int
    taker: int
    taken: int


def handings(held: list[list[tuple[int, int]]]) -> Iterator[Handing]:
    """The steps that leave the whole sum with one process, in an order that all follow; `held` are the (first, last) lanes of
    the nodes that each process has.

    >>> [(step.giver, step.taker) for step in handings([[(0, 1)], [(2, 3)], [(4, 5)], [(6, 7)]])]
    [(1, 0), (3, 2), (2, 0)]
    """
    # The same stack as in `Tree`, over the nodes of all processes: (first, last, who has it).
    stack: list[tuple[int, int, int]] = []
    waiting = [(first, last, rank) for rank, nodes in enumerate(held) for first, last in nodes]
    for position in range(len(waiting) + 1):
        following = waiting[position] if position < len(waiting) else None
        while len(stack) > 1:
            (first, _, taker), (given, last, giver) = stack[-2:]
            start, stop = subtree(first, last)
            if following is not None and start <= following[0] < stop:
                break
            yield Handing(giver, given, taker, first)
            stack[-2:] = [(first, last, taker)]
        if following is not None:
            stack.append(following)
