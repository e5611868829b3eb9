"""Genetic programming by Operon (Burlacu, Kronberger, Kommenda, GECCO 2020 companion), through pyoperon.

Two objectives, R² and length; constants tuned by Levenberg–Marquardt. Trees are read node by node: the printed formula has
fixed-point numbers and loses small constants. pyoperon is single precision and swaps fmin and fmax, so neither is offered.
"""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.regression.engines import Proposal, Search
from compress.symbolic.operations import Tree, apply

if TYPE_CHECKING:
    from compress.regression.options import EngineOptions

_ARITHMETIC = ("add", "sub", "mul", "div", "aq", "pow", "powabs", "square", "abs", "sqrt", "sqrtabs", "cbrt")
_FUNCTIONS = (
    "exp",
    "log",
    "logabs",
    "log1p",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "ceil",
    "floor",
)
OPERATORS = {*_ARITHMETIC, *_FUNCTIONS}
_CHUNK = 20_000  # evaluations between two looks at the clock and at Ctrl-C
_MAX_DEPTH = 10


def missing() -> str | None:
    """Why the engine cannot run here, or None."""
    if importlib.util.find_spec("pyoperon") is None:
        return "pyoperon is not installed (wheels: Linux x86_64 and macOS arm64; pip install pyoperon)"
    return None


def prepare(z: np.ndarray, options: EngineOptions) -> Search:
    """A search over z (n, I), standardised."""
    # Here, not at the top: `missing` must be able to say that there is no pyoperon.
    from pyoperon.sklearn import SymbolicRegressor

    def search(y: np.ndarray, seed: int) -> tuple[list[Proposal], list[str]]:
        population = options.population
        notes = []
        if options.evaluations is not None and options.evaluations < 2 * population:
            # One population would use up the budget, and nothing would be bred from it.
            population = max(options.evaluations // 2, 10)
            notes.append(
                f"{options.evaluations} evaluations are few: population lowered from {options.population} to {population}"
            )
        regressor = SymbolicRegressor(
            allowed_symbols=",".join([*options.operators, "constant", "variable"]),
            objectives=["r2", "length"],
            optimizer_iterations=options.optimizer_iterations,
            max_length=options.max_length,
            max_depth=_MAX_DEPTH,
            population_size=population,
            # Out of reach: evaluations and seconds end the search.
            generations=2**31 - 1,
            uncertainty=[1.0],
            # The outputs are searched in parallel already (`regress_each`), and a budget must give the same trees every time.
            n_threads=1,
        )
        found: dict[str, Proposal] = {}
        started, done, chunk = time.monotonic(), 0, 0
        while options.evaluations is None or done < options.evaluations:
            # A chunk has room for a whole population and its offspring.
            step = _CHUNK if options.evaluations is None else min(max(_CHUNK, 2 * population), options.evaluations - done)
            # Each chunk has a seed of its own and goes on from the last population, so a budget gives the same trees anywhere.
            regressor.set_params(max_evaluations=step, random_state=(seed + chunk) % 2**32, warm_start=chunk > 0)
            regressor.fit(z, y)
            done, chunk = done + step, chunk + 1
            for member in regressor.pareto_front_:
                tree, constants = read_tree(member["tree"], list(regressor.variables_))
                # By what it says: the front of a chunk holds most of the one before.
                found[repr((tree, constants))] = (tree, constants, "operon")
            if options.seconds is not None and time.monotonic() - started >= options.seconds:
                break
        return list(found.values()), notes

    return search


def read_tree(tree: Any, variables: list[int]) -> tuple[Tree, list[float]]:
    """(tree, constants) of an operon tree, a postfix list of nodes; `variables` are the inputs' hashes in order."""
    position = {value: i for i, value in enumerate(variables)}
    constants: list[float] = []
    stack: list[Tree] = []
    for node in tree.Nodes:
        name = node.Type.name.lower()
        if name in ("constant", "variable"):
            leaf: Tree = ["param", len(constants)]
            constants.append(float(node.Value))  # a variable's value is its weight
            stack.append(leaf if name == "constant" else ["mul", leaf, ["var", position[node.HashValue]]])
            continue
        args = [stack.pop() for _ in range(node.Arity)]  # the last pushed is the first argument
        # A unary minus and a reciprocal are `sub` and `div` of one argument in Operon.
        if name in ("sub", "div") and len(args) == 1:
            name = "neg" if name == "sub" else "reciprocal"
        # More than two are folded from the left, as `sub` and `div` of the table take two.
        while len(args) > 2 and name in ("sub", "div"):
            args[:2] = [apply(name, *args[:2])]
        stack.append(apply(name, *args))
    return stack[0], constants
