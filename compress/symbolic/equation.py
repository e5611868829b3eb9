"""Reading the equations that a symbolic-regression program prints, by a whitelist: text → tree, never evaluated as code.

Python's own parser builds the syntax tree; only numbers, known variables, + - * / ^ and calls of functions in the table pass.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from compress.symbolic.compile import compile_program
from compress.symbolic.evaluate import evaluate_numpy
from compress.symbolic.expression import check_tree, fold
from compress.symbolic.operations import Tree, apply

MAX_LENGTH = 20_000  # characters
MAX_EXPONENT = 64
_BINARY: dict[type, str] = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.Pow: "pow", ast.Mod: "mod"}
_SYNONYMS = {"neg": "neg", "ceiling": "ceil", "Abs": "abs", "Max": "maximum", "Min": "minimum", "pow_abs": "powabs"}


def read_equation(text: str, names: Sequence[str]) -> tuple[Tree, list[float]]:
    """Tree and constants of an equation over the variables `names`, in Julia's or Python's notation.

    Raises ValueError for anything but arithmetic, known functions and known variables.

    >>> read_equation("1.5f-1 * inv(x1) ^ 2", ["x0", "x1"])
    (['mul', ['param', 0], ['pow', ['reciprocal', ['var', 1]], ['int', 2]]], [0.15])
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"an equation of {len(text)} characters; at most {MAX_LENGTH} are read")
    # Julia: 1.5f-3 is a float32 number, ^ a power.
    # The look-behind leaves names that hold digits, such as x1f2, whole.
    python = re.sub(r"(?<![\w.])(\d+\.?\d*|\.\d+)f([+-]?\d+)", r"\1e\2", text).replace("^", "**")
    try:
        root = ast.parse(python.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # ast.parse answers null bytes with a ValueError, deep nesting with a RecursionError or a MemoryError.
        raise ValueError(f"not an equation: {text[:80]!r}") from None
    position = {name: i for i, name in enumerate(names)}
    constants: list[float] = []

    def leaf(value: Any) -> Tree:
        """Numbers stay Python floats until they meet a variable; everything else is a tree already."""
        if not isinstance(value, float):
            return value
        constants.append(value)
        return ["param", len(constants) - 1]

    def visit(node: ast.AST, args: list[Any]) -> Any:
        if isinstance(node, ast.Constant):
            return _finite(node.value, text)
        if isinstance(node, ast.Name):
            if node.id not in position:
                raise ValueError(f"unknown variable {node.id[:40]!r} in {text[:80]!r}; known are {', '.join(names)}")
            return ["var", position[node.id]]
        name = _function(node, text)
        # Numbers alone: computed by the program that computes everything else, and checked to be finite.
        if all(isinstance(a, float) for a in args):
            return _finite(_value(apply(name, *(["param", k] for k in range(len(args)))), args), text)
        # An exponent must not become a parameter: moved off 2 it would make negative bases NaN.
        if name == "pow" and isinstance(args[1], float):
            return apply("pow", args[0], _exponent(args[1], leaf))
        return apply(name, *(leaf(a) for a in args))

    try:
        tree = leaf(fold(root, _children, visit))
    except RecursionError:
        raise ValueError(f"nested too deeply: {text[:80]!r}") from None
    check_tree(tree, len(position), len(constants))
    return tree, constants


def _children(node: ast.AST) -> list[ast.AST]:
    match node:
        case ast.BinOp():
            return [node.left, node.right]
        case ast.UnaryOp():
            return [node.operand]
        case ast.Call(func=ast.Name(), keywords=[]):
            return list(node.args)
        case _:
            return []


def _function(node: ast.AST, text: str) -> str:
    match node:
        case ast.BinOp() if type(node.op) in _BINARY:
            return _BINARY[type(node.op)]
        case ast.UnaryOp(op=ast.USub()):
            return "neg"
        case ast.UnaryOp(op=ast.UAdd()):
            return "add"  # a sum of one
        case ast.Call(func=ast.Name(id=name), keywords=[]) if node.args:
            # PySR's guarded functions, safe_log and the like, are NaN outside their domain, as the table's own are.
            name = name.removeprefix("safe_")
            return _SYNONYMS.get(name, name)
        case _:
            raise ValueError(f"{type(node).__name__} is not allowed in an equation: {text[:80]!r}")


def _finite(value: Any, text: str) -> float:
    # type, since True is an int; bits, since math.isfinite raises OverflowError for an integer beyond float64.
    if type(value) not in (int, float) or (type(value) is int and value.bit_length() > 1000) or not math.isfinite(value):
        raise ValueError(f"a number that is not finite, or no number, in {text[:80]!r}")
    return float(value)


def _value(tree: Tree, constants: list[float]) -> float:
    """A part without variables, as a float64: 9^9^9 is infinite here, not three hundred million digits."""
    return float(evaluate_numpy(compile_program([tree], 1, len(constants)), np.zeros((1, 1)), constants)[0, 0])


def _exponent(value: float, leaf: Any) -> Tree:
    """Integers and halves stay literal, as in `to_tree`."""
    if abs(value) > MAX_EXPONENT:
        raise ValueError(f"an exponent of {value:g}; at most {MAX_EXPONENT} is read")
    if value.is_integer():
        return ["int", int(value)]
    return ["rational", int(2 * value), 2] if (2 * value).is_integer() else leaf(value)
