"""Sparse regression on a library of terms: 1, z_i, z_i², z_i z_j and elementary functions of one input.

Terms enter one by one, each the one that lowers the squared error most given those already in (orthogonal least squares: Chen,
Billings, Luo, Int. J. Control 50, 1989). Takes a second where a tree search takes minutes, and is as good on wide inputs.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from compress.numerics.lapack import least_squares
from compress.regression.engines import Proposal, Search
from compress.symbolic.compile import compile_program
from compress.symbolic.evaluate import certify, evaluate_numpy
from compress.symbolic.operations import OPERATIONS, Tree, apply

if TYPE_CHECKING:
    from compress.regression.options import EngineOptions

OPERATORS = {name for name, row in OPERATIONS.items() if row.least == row.most == 1 and row.gives == "real"} | {
    "add",
    "sub",
    "mul",
}
MAX_LIBRARY = 3000  # terms; the Gram matrix is 72 MB there
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_INDEPENDENT = 1e-9  # of a column's own norm; what is left of a smaller one is rounding


def prepare(z: np.ndarray, options: EngineOptions) -> Search:
    """The library over z (n, I) and its Gram matrix, shared by all outputs."""
    trees, notes = library(z, options.operators)
    program = compile_program(trees, z.shape[1], 0)
    columns = evaluate_numpy(program, z, [])  # (n, terms)
    size = np.linalg.norm(columns, axis=0)
    # Centred, so that no term stands in for the constant; of unit norm, so that gains can be compared.
    centre = columns.mean(axis=0)
    columns -= centre
    scale = np.linalg.norm(columns, axis=0)
    usable = scale > 1e-10 * size  # else constant, like z² of a z that is ±1
    columns /= np.where(usable, scale, 1)
    gram = columns.T @ columns

    def search(y: np.ndarray, seed: int) -> tuple[list[Proposal], list[str]]:
        # At most half as many terms as rows.
        order = forward_selection(gram, columns.T @ (y - y.mean()), min(options.terms, len(z) // 2), usable)
        proposals: list[Proposal] = []
        # A path of a few sizes: each is a proposal that will be certified and scored.
        for size in sorted({min(s, len(order)) for s in (*_SIZES, len(order))} - {0}):
            chosen = order[:size]
            # Divided by the norms, with the centres in the constant, these are the weights of the terms themselves.
            weights = least_squares(columns[:, chosen], y - y.mean()) / scale[chosen]
            terms = [["mul", ["param", k], trees[j]] for k, j in enumerate(chosen)]
            offset = float(y.mean() - weights @ centre[chosen])
            numbers = [float(w) for w in weights]
            if abs(offset) > 1e-12 * y.std():  # else it is rounding
                terms, numbers = [*terms, ["param", size]], [*numbers, offset]
            proposals.append((["add", *terms], numbers, "sparse"))
        return proposals, notes if order else [*notes, "the library explains nothing of this output"]

    return search


def library(z: np.ndarray, operators: tuple[str, ...]) -> tuple[list[Tree], list[str]]:
    """(terms, notes): every operator's terms that are finite over the range of z."""
    variables: list[Tree] = [["var", i] for i in range(z.shape[1])]
    trees, notes = list(variables), []
    low, high = z.min(axis=0).tolist(), z.max(axis=0).tolist()
    functions = [name for name in operators if name in OPERATORS - {"add", "sub", "mul", "square"}]
    for name, variable in itertools.product(functions, variables):
        tree = apply(name, variable)
        if certify(compile_program([tree], z.shape[1], 0), [], low, high):
            trees.append(tree)
    # Without a certificate of their own: a square or product of two bounded inputs is bounded.
    if {"mul", "square"} & set(operators):
        trees += [apply("square", v) for v in variables]
    if "mul" in operators:
        room = max(MAX_LIBRARY - len(trees), 0)
        paired = len(variables)
        # As many inputs as the room left has all pairs of.
        while paired * (paired - 1) // 2 > room:
            paired -= 1
        if paired < len(variables):
            notes.append(
                f"products of the first {paired} of {len(variables)} inputs only: the library holds {MAX_LIBRARY} terms"
            )
        trees += [["mul", a, b] for a, b in itertools.combinations(variables[:paired], 2)]
    return trees, notes


def forward_selection(gram: np.ndarray, moment: np.ndarray, terms: int, usable: np.ndarray) -> list[int]:
    """Greedy order of columns, from their Gram matrix (p, p), unit diagonal, and products with the target (p,).

    Equivalent to refitting least squares with every candidate added at every step; done here by a pivoted Cholesky factor.
    """
    moment, left = moment.copy(), np.where(usable, 1.0, 0.0)  # what earlier columns leave of each column's square
    factor = np.zeros((len(moment), terms))
    order: list[int] = []
    for k in range(terms):
        # What each column would take off the squared error: (product with the rest of y)² / what is left of its own square.
        gain = np.where(left > _INDEPENDENT, moment**2 / np.maximum(left, _INDEPENDENT), 0.0)
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        order.append(best)
        # The next column of the pivoted Cholesky factor of the Gram matrix.
        column = (gram[best] - factor[:, :k] @ factor[best, :k]) / np.sqrt(left[best])
        factor[:, k] = column
        # Products and squares as they are once the chosen column is projected out of all others.
        moment -= column * (moment[best] / column[best])
        left -= column**2
        left[best] = 0.0
    return order
