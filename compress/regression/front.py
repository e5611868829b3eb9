"""The result of a symbolic regression: candidates from simple to accurate, and the rules that pick one of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import sympy

from compress.symbolic.expression import from_tree
from compress.symbolic.operations import Tree

Rule = Literal["held_out", "knee"] | int
PARSIMONY = 0.01  # "held_out" takes the simplest candidate whose loss is within this fraction of the best


@dataclass(frozen=True)
class Candidate:
    """One expression: tree, constants, size and losses.

    A loss is the mean squared error divided by the variance of the same rows' targets: 0 is exact, 1 as good as their mean, and
    1 − loss is R². `held_out_loss` is None where no rows were held out. `source` says what proposed it.
    """

    tree: Tree
    constants: tuple[float, ...]
    complexity: int
    train_loss: float
    held_out_loss: float | None
    source: str

    def expression(self, symbols: Sequence[sympy.Symbol]) -> sympy.Expr:
        """As sympy, unevaluated, over one symbol per input. Raises ValueError where there are fewer."""
        return from_tree(self.tree, symbols, self.constants)

    def to_json(self) -> dict[str, Any]:
        """JSON values; floats survive exactly."""
        return {
            "tree": self.tree,
            "constants": list(self.constants),
            "complexity": self.complexity,
            "train_loss": self.train_loss,
            "held_out_loss": self.held_out_loss,
            "source": self.source,
        }


@dataclass(frozen=True)
class Front:
    """Candidates by rising complexity and falling training loss, never empty; `notes` tell what went otherwise than asked."""

    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON values; floats survive exactly."""
        return {"candidates": [c.to_json() for c in self.candidates], "notes": list(self.notes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The front of `to_json`. Raises KeyError or TypeError for anything else."""
        return cls(
            tuple(Candidate(**{**c, "constants": tuple(c["constants"])}) for c in data["candidates"]), tuple(data["notes"])
        )


def pareto(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Those that no simpler or equally simple candidate beats in training loss, from simple to accurate."""
    kept: list[Candidate] = []
    # By size, then loss: what is kept must be better than all that is simpler, and of two equal ones the first stays.
    for candidate in sorted(candidates, key=lambda c: (c.complexity, c.train_loss)):
        if not kept or candidate.train_loss < kept[-1].train_loss:
            kept.append(candidate)
    return tuple(kept)


def choose(front: Front, rule: Rule | str = "held_out") -> int:
    """Index of the candidate that a rule picks.

    held_out: the simplest within 1 % of the best held-out loss. knee: farthest below the chord of the front, complexity and
    loss each scaled to [0, 1]. An integer: the most accurate of at most that complexity. Raises ValueError where there is none.
    """
    candidates = front.candidates
    if rule == "held_out":
        losses = [c.held_out_loss for c in candidates if c.held_out_loss is not None]
        if len(losses) < len(candidates):
            raise ValueError("this front was fitted without held-out rows; choose by 'knee' or by complexity")
        enough = min(losses) * (1 + PARSIMONY)
        return next(i for i, loss in enumerate(losses) if loss <= enough)  # the simplest: complexity rises along the front
    if rule == "knee":
        first, last = candidates[0], candidates[-1]
        width, height = last.complexity - first.complexity, first.train_loss - last.train_loss
        # A front of one point, or of equal losses, has no chord: every candidate is as far below it as the others.
        below = [
            (first.train_loss - c.train_loss) / height - (c.complexity - first.complexity) / width if width and height else 0.0
            for c in candidates
        ]
        return max(range(len(below)), key=lambda i: (below[i], -i))  # of equal ones the simplest
    if not isinstance(rule, int):
        raise ValueError(f"choice {rule!r} given; allowed: held_out, knee, or a complexity (an integer)")
    allowed = [i for i, c in enumerate(candidates) if c.complexity <= rule]
    if not allowed:
        sizes = ", ".join(str(c.complexity) for c in candidates)
        raise ValueError(f"no candidate of complexity {rule} or less; there are {sizes}")
    return allowed[-1]  # the most accurate: losses fall along the front


def finite(*losses: float | None) -> bool:
    """Whether every loss that is there is a finite number."""
    return all(loss is None or math.isfinite(loss) for loss in losses)
