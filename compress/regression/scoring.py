"""From an engine's proposals to scored candidates: the caller's units, certificate, simplification, losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.regression.engines import Proposal
from compress.regression.front import Candidate, Front, finite, pareto
from compress.symbolic.compile import compile_program
from compress.symbolic.evaluate import certify, evaluate_numpy
from compress.symbolic.expression import complexity, fold, from_tree, symbols, to_tree, tree_children
from compress.symbolic.operations import LEAVES, Tree


@dataclass(frozen=True)
class Rows:
    """Checked rows: training and held-out inputs (n, I) and targets (n, O), float64."""

    z: np.ndarray
    y: np.ndarray
    z_held: np.ndarray
    y_held: np.ndarray


@dataclass(frozen=True)
class Scaling:
    """Engines saw (z − shift) / scale and (y − y_shift) / y_scale."""

    shift: np.ndarray
    scale: np.ndarray
    y_shift: float
    y_scale: float

    def undo(self, tree: Tree, constants: Sequence[float]) -> tuple[Tree, list[float]]:
        """The same expression in the caller's units."""
        numbers = list(constants)

        def param(value: Any) -> Tree:
            numbers.append(float(value))
            return ["param", len(numbers) - 1]

        def visit(node: Tree, args: list[Tree]) -> Tree:
            if node[0] != "var":
                return node if node[0] in LEAVES else [node[0], *args]
            shift, scale = self.shift[node[1]], self.scale[node[1]]
            # What was not moved is not moved back: no constant is added, and the tree stays as small as it was found.
            moved = ["sub", node, param(shift)] if shift else node
            return ["mul", param(1 / scale), moved] if scale != 1 else moved

        tree = fold(tree, tree_children, visit)
        tree = ["mul", param(self.y_scale), tree] if self.y_scale != 1 else tree
        return (["add", param(self.y_shift), tree] if self.y_shift else tree), numbers


class Judge:
    """Turns proposals for one output into scored candidates."""

    def __init__(self, rows: Rows, k: int, scaling: Scaling, certify: bool, complexities: Mapping[str, int]) -> None:
        self.z, self.y = rows.z, rows.y[:, k]
        self.low, self.high = rows.z.min(axis=0), rows.z.max(axis=0)  # the box that expressions are certified on
        self.z_held, self.y_held = rows.z_held, rows.y_held[:, k]
        self.scaling, self.must_certify, self.complexities = scaling, certify, complexities

    def front(self, proposals: Sequence[Proposal], notes: Sequence[str]) -> Front:
        """The Pareto front of the proposals for one output, with a note of how many were dropped."""
        judged = [self.candidate(*proposal) for proposal in proposals]
        kept = [c for c in judged if c is not None]
        dropped = len(judged) - len(kept)
        more = (
            [f"{dropped} of {len(judged)} expressions may not be finite over the calibrated range: dropped"] if dropped else []
        )
        return Front(pareto(kept), (*notes, *more))

    def candidate(self, tree: Tree, constants: Sequence[float], source: str) -> Candidate | None:
        """None where the expression is not certified, or not finite on the rows."""
        tree, constants = self.scaling.undo(tree, constants)
        # Only bounded trees are simplified: sympy would compute a tower of exponentials to the last digit.
        certified = self.certified(tree, constants)
        if certified:
            tree, constants = self.tidy(tree, constants)
        elif self.must_certify:
            return None
        program = compile_program([tree], self.z.shape[1], len(constants))
        train = self.loss(evaluate_numpy(program, self.z, constants)[:, 0], self.y)
        held = self.loss(evaluate_numpy(program, self.z_held, constants)[:, 0], self.y_held) if len(self.y_held) else None
        if not finite(train, held):
            return None
        return Candidate(tree, tuple(constants), complexity(tree, self.complexities), train, held, source)

    def loss(self, predicted: np.ndarray, y: np.ndarray) -> float:
        """Mean squared error over the variance of the targets: 1 − R². Not finite where the prediction is not."""
        with np.errstate(all="ignore"):
            # Targets that happen to be constant have no variance: the training rows' takes its place, else 1.
            return float(np.mean((predicted - y) ** 2)) / (float(y.var()) or float(self.y.var()) or 1.0)

    def certified(self, tree: Tree, constants: Sequence[float]) -> bool:
        """Whether every step is finite in float32 over the range of the training rows."""
        try:
            program = compile_program([tree], self.z.shape[1], len(constants))
        except ValueError:  # too large, or a part without a finite value
            return False
        return certify(program, constants, self.low.tolist(), self.high.tolist()) is not None

    def tidy(self, tree: Tree, constants: Sequence[float]) -> tuple[Tree, Sequence[float]]:
        """Simplified by sympy where that makes it no larger and keeps it certified. Only for trees whose values are bounded."""
        names = symbols(self.z.shape[1])
        try:
            new, numbers = to_tree(from_tree(tree, names, constants, evaluate=True), names)
        except (ValueError, TypeError, RecursionError):  # sympy met an indeterminate form
            return tree, constants
        # Certified again: the bounds depend on how an expression is written.
        better = complexity(new) <= complexity(tree) and self.certified(new, numbers)
        return (new, numbers) if better else (tree, constants)
