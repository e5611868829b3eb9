"""The cases that pytest runs: pairs of method, architecture and check, and every check once for every kind."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from itertools import count

from conformance import checks
from conformance.case import Case, kind_cases, method_cases
from conformance.pairs import Cell, pairwise
from conformance.refusal import refusal

SEED = 0
DEAR = 2.0  # seconds: checks above it get a model of one layer, of a case of their own


def cells() -> list[Cell]:
    """(method, architecture), whether it is refused or not: a refusal is checked, too."""
    return sorted({(case.name, case.architecture) for case in method_cases()})


def costs() -> dict[str, float]:
    return {name: checks.seconds(name) for name in checks.names()}


@cache
def left_out() -> set[tuple[str, str, str]]:
    """(check, method, architecture) that are exempt or refused, whatever the example: of such a pair nothing is shown."""
    return {
        (name, case.name, case.architecture)
        for case in method_cases()
        for name in checks.names()
        if checks.exemption(name, case) is not None or refusal(case) is not None
    }


@cache
def method_slice(seed: int = SEED) -> list[tuple[Case, tuple[str, ...]]]:
    """Examples take turns, so that each meets several architectures."""
    examples: dict[str, list[Case]] = defaultdict(list)
    for case in method_cases():
        examples[case.name, case.architecture].append(case)
    turns: dict[str, count[int]] = defaultdict(count)
    found = []
    for (method, row), held in sorted(pairwise(cells(), costs(), left_out(), seed).items()):
        own = examples[method, row]
        case = own[next(turns[method]) % len(own)]
        names = held or [checks.names()[0]]  # refused: that it is, and that it says what is supported
        cheap = tuple(name for name in names if checks.seconds(name) <= DEAR)
        found += [(case, cheap)] if cheap else []
        found += [(case.of_layers(1), (name,)) for name in names if name not in cheap]
    return found


def kind_slice() -> list[tuple[Case, tuple[str, ...]]]:
    """Every plan with every check that is not dear, the n-th plan on the n-th architecture that it is not exempt from: the
    dear ones meet every kind through the methods that write it.
    """
    by_plan: dict[str, list[Case]] = defaultdict(list)
    for case in kind_cases():
        if f"*:{case.architecture}" not in case.declared:
            by_plan[case.name].append(case)
    picked = [own[i % len(own)] for i, own in enumerate(by_plan.values())]
    cheap = [name for name in checks.names() if checks.seconds(name) <= DEAR]
    return [(case, tuple(name for name in cheap if checks.exemption(name, case) is None)) for case in picked]
