"""Random well-formed trees for property tests, and the points at which each operation is compared."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from compress.symbolic.operations import OPERATIONS, PRIMITIVES, apply

N_INPUTS, N_CONSTANTS = 3, 3

# Finite for every argument: a random tree of these has a value everywhere.
_SAFE_UNARY = ("sin", "cos", "tanh", "atan", "asinh", "erf", "abs", "neg", "square", "sqrtabs", "sigmoid", "relu")
_SAFE_BINARY = ("add", "mul", "sub", "maximum", "minimum", "aq")

_LEAVES = st.one_of(
    st.integers(0, N_INPUTS - 1).map(lambda i: ["var", i]),
    st.integers(0, N_CONSTANTS - 1).map(lambda k: ["param", k]),
    st.integers(-3, 3).map(lambda n: ["int", n]),
    st.sampled_from([["rational", 1, 3], ["rational", -5, 2]]),
)


def _parents(child: Any) -> Any:
    return st.one_of(
        st.tuples(st.sampled_from(_SAFE_UNARY), child).map(lambda t: apply(*t)),
        st.tuples(st.sampled_from(_SAFE_BINARY), child, child).map(lambda t: apply(*t)),
    )


def _parents_with_conditions(child: Any) -> Any:
    condition = st.tuples(st.sampled_from(["lt", "ge"]), child, child).map(lambda t: apply(*t))
    return st.one_of(_parents(child), st.tuples(condition, child, child).map(lambda t: apply("where", *t)))


def trees(leaves: int = 16, conditions: bool = True) -> Any:
    """Strategy: trees over 3 inputs and 3 constants."""
    return st.recursive(_LEAVES, _parents_with_conditions if conditions else _parents, max_leaves=leaves)


constants = st.lists(
    st.floats(-2, 2, allow_subnormal=False).map(lambda v: round(v, 3)), min_size=N_CONSTANTS, max_size=N_CONSTANTS
)

_MATH = {
    "sin": math.sin,
    "cos": math.cos,
    "tanh": math.tanh,
    "atan": math.atan,
    "asinh": math.asinh,
    "erf": math.erf,
    "abs": abs,
    "neg": lambda a: -a,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "reciprocal": lambda a: 1 / a,
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "sub": lambda a, b: a - b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "maximum": max,
    "minimum": min,
    "lt": lambda a, b: a < b,
    "ge": lambda a, b: a >= b,
    "where": lambda c, a, b: a if c else b,
    "int": lambda n: n,
    "rational": lambda p, q: p / q,
}


def value(tree: Any, z: tuple[float, ...], numbers: list[float]) -> float:
    """The oracle for random trees: plain recursion over Python's `math`, nothing of the code under test."""
    name, *args = tree
    if name in ("var", "param"):
        return (z if name == "var" else numbers)[args[0]]
    return _MATH[name](*(value(a, z, numbers) if isinstance(a, list) else a for a in args))


# Arguments inside each operation's domain, away from its edges; float32 values, so that every backend reads the same number.
_REALS = ((-2.25, 1.5, 0.75), (0.5, -1.25, 2.0), (1.75, 0.625, -0.375), (3.0, 2.5, 0.125))
_POSITIVE = tuple(tuple(abs(v) for v in row) for row in _REALS)
_UNIT = tuple(tuple(v / 4 for v in row) for row in _REALS)
_ABOVE_ONE = tuple(tuple(abs(v) + 1 for v in row) for row in _REALS)
_SPECIAL = dict.fromkeys(("log", "sqrt", "pow", "log1p", "log2", "log10"), _POSITIVE)
_SPECIAL |= dict.fromkeys(("asin", "acos", "atanh"), _UNIT) | {"acosh": _ABOVE_ONE}


def points(name: str) -> tuple[tuple[float, ...], ...]:
    """Rows (z0, z1, z2) inside the domain of an operation."""
    return _SPECIAL.get(name, _REALS)


def example(name: str) -> Any:
    """A real-valued tree whose root (or condition) is the operation, over as many of z0, z1, z2 as it takes."""
    row = OPERATIONS[name]
    count = 3 if row.most is None else row.least
    kinds = [*row.takes, *[row.takes[-1]] * count]
    variables = [["var", i] for i in range(3)]
    args = [apply("lt", variables[i], ["int", 1]) if kinds[i] == "bool" else variables[i] for i in range(count)]
    tree = apply(name, *args)
    return tree if row.gives == "real" else apply("where", tree, ["var", 0], ["int", 7])


assert set(_SPECIAL) <= set(OPERATIONS)
assert set(PRIMITIVES) <= set(OPERATIONS)
