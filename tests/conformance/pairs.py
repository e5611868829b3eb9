"""A slice of the matrix: few cases that meet every pair of method, check and architecture at least once.

A covering array of strength two, greedily: the dear checks are spread first, over as few cases as there are methods or
architectures, and whatever case is left without a check gets the cheapest.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

Cell = tuple[str, str]  # method, architecture
Pair = tuple[str, str]


def pairwise(
    cells: Sequence[Cell], costs: Mapping[str, float], left_out: Iterable[tuple[str, str, str]], seed: int
) -> dict[Cell, list[str]]:
    """{cell: its checks}, every cell with at least one, but for those whose every (check, method, architecture) is left out."""
    impossible = set(left_out)
    order = list(cells)
    random.Random(seed).shuffle(order)
    chosen: dict[Cell, list[str]] = {cell: [] for cell in order}
    for check in sorted(costs, key=lambda name: (-costs[name], name)):
        able = [cell for cell in order if (check, *cell) not in impossible]
        waiting = {("method", m) for m, _ in able} | {("architecture", a) for _, a in able}
        while waiting:

            def gain(cell: Cell, waiting: set[Pair] = waiting) -> tuple[int, float]:
                new = (("method", cell[0]) in waiting) + (("architecture", cell[1]) in waiting)
                return new, -sum(costs[name] for name in chosen[cell])

            best = max(able, key=gain)
            chosen[best].append(check)
            waiting -= {("method", best[0]), ("architecture", best[1])}
    for cell in order:
        if not chosen[cell]:
            held = [check for check in sorted(costs, key=lambda name: (costs[name], name)) if (check, *cell) not in impossible]
            chosen[cell] = held[:1]
    return chosen


def uncovered(
    chosen: Mapping[Cell, Sequence[str]], costs: Iterable[str], left_out: Iterable[tuple[str, str, str]]
) -> dict[str, set[Pair]]:
    """The pairs that could be met and are not, by what they are pairs of."""
    impossible = set(left_out)
    possible = [(m, a, c) for (m, a), c in product(chosen, costs) if (c, m, a) not in impossible]
    met = [(m, a, c) for (m, a), names in chosen.items() for c in names]
    return {
        "method, check": {(m, c) for m, _, c in possible} - {(m, c) for m, _, c in met},
        "method, architecture": {(m, a) for m, a, _ in possible} - {(m, a) for m, a, _ in met},
        "architecture, check": {(a, c) for _, a, c in possible} - {(a, c) for _, a, c in met},
    }
