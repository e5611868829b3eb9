"""Expressions as features of a regression: which ones vary, their values, and the same over fewer inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compress.regression.front import Candidate, Front
from compress.symbolic.compile import compile_program
from compress.symbolic.evaluate import evaluate_numpy
from compress.symbolic.expression import fold, tree_children
from compress.symbolic.operations import LEAVES, Tree


def varying(fronts: Sequence[Front]) -> list[tuple[int, int]]:
    """(output, candidate) of all candidates that read an input, front after front."""
    every = [(k, i, c.tree) for k, front in enumerate(fronts) for i, c in enumerate(front.candidates)]
    return [(k, i) for k, i, tree in every if variables(tree)]


def evaluate(candidates: Sequence[Candidate], z: Tensor) -> Tensor:
    """Values of the candidates at z (n, inputs) → (n, len(candidates)), float64; one at a time, registers are whole columns."""
    # A part without columns: no candidates at all give (n, 0).
    columns = [z.new_zeros(len(z), 0)]
    for candidate in candidates:
        program = compile_program([candidate.tree], z.shape[1], len(candidate.constants))
        columns.append(torch.from_numpy(evaluate_numpy(program, z.numpy(), candidate.constants)))
    return torch.cat(columns, dim=1)


def variables(tree: Tree) -> frozenset[int]:
    """The inputs a tree reads.

    >>> sorted(variables(["add", ["var", 3], ["sin", ["var", 1]], ["param", 0]]))
    [1, 3]
    """

    def visit(node: Tree, args: list[frozenset[int]]) -> frozenset[int]:
        return frozenset([node[1]]) if node[0] == "var" else frozenset().union(*args)

    return fold(tree, tree_children, visit)


def renumbered(trees: Sequence[Tree]) -> tuple[list[Tree], list[int]]:
    """(the trees over the inputs that at least one of them reads, those inputs' old indices).

    >>> renumbered([["var", 4], ["sin", ["var", 2]]])
    ([['var', 1], ['sin', ['var', 0]]], [2, 4])
    """
    read = sorted({i for tree in trees for i in variables(tree)})
    place: Mapping[int, int] = {old: new for new, old in enumerate(read)}

    def visit(node: Tree, args: list[Tree]) -> Tree:
        if node[0] == "var":
            return ["var", place[node[1]]]
        return node if node[0] in LEAVES else [node[0], *args]

    return [fold(tree, tree_children, visit) for tree in trees], read
