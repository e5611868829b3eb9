"""The table of operations, one row per function: what it is in torch, ONNX, numpy, sympy and interval arithmetic.

A primitive row's name IS its torch function (`torch.maximum`), and it is one ONNX operator and one numpy function, so that the
interpreter, the source generator and the graph exporter cannot drift apart. A composed row is a template over primitives:
engines and people may use its name, trees and programs never hold it.

Domains follow IEEE 754 in every backend: outside its domain a function is NaN (infinite at a pole) in torch, ONNX Runtime and
numpy alike, where sympy would answer with a complex number; the batched form holds infinite intermediate values at ±3.4e38.
No other guard costs time: candidates are kept only where interval arithmetic rules such values out (`evaluate.certify`).
"""
# sympy and scipy have annotations here and there, but declare none.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import sympy
from scipy import special

from compress.symbolic import interval
from compress.symbolic.interval import Rule, monotone, within

Tree = list[Any]  # [name, child, …]; leaves: ["var", i] ["param", k] ["int", n] ["rational", p, q] ["nan"]
Kind = Literal["real", "bool"]

LEAVES = {"var": 1, "param": 1, "int": 1, "rational": 2, "nan": 0}  # name → how many numbers follow


@dataclass(frozen=True)
class Operation:
    """One row. `most` None means any number of arguments, folded from the left; `takes` repeats its last kind.

    `sympy` builds the expression (called with `evaluate=`); where it is a sympy class, `to_tree` also reads that class back.
    """

    name: str
    least: int
    most: int | None
    sympy: Callable[..., Any] | None = None
    onnx: str = ""
    numpy: Callable[..., Any] | None = None
    bounds: Rule | None = None
    domain: str = "all reals"
    takes: tuple[Kind, ...] = ("real",)
    gives: Kind = "real"
    composed: Tree | None = None  # over ["arg", i]

    @property
    def arity(self) -> str:
        """For messages: "2", or "at least 1"."""
        return f"at least {self.least}" if self.most is None else str(self.least)


def _power(exponent: sympy.Rational) -> Callable[..., Any]:
    def make(x: Any, evaluate: bool) -> Any:
        return sympy.Pow(x, exponent, evaluate=evaluate)

    return make


def _minus(x: Any, evaluate: bool) -> Any:
    return sympy.Mul(sympy.S.NegativeOne, x, evaluate=evaluate)


def _divide(x: Any, y: Any, evaluate: bool) -> Any:
    return sympy.Mul(x, sympy.Pow(y, sympy.S.NegativeOne, evaluate=evaluate), evaluate=evaluate)


def _where(condition: Any, x: Any, y: Any, evaluate: bool) -> Any:
    return sympy.Piecewise((x, condition), (y, True), evaluate=evaluate)


def _minus_of(x: Any, y: Any, evaluate: bool) -> Any:
    return sympy.Add(x, _minus(y, evaluate), evaluate=evaluate)


def _unary(name: str, make: Any, onnx: str, function: Any, bounds: Rule, domain: str = "all reals") -> Operation:
    return Operation(name, 1, 1, make, onnx, function, bounds, domain)


def _compare(name: str, make: Any, onnx: str, function: Any) -> Operation:
    return Operation(name, 2, 2, make, onnx, function, within(0, 1), gives="bool")


def _logic(name: str, most: int | None, make: Any, onnx: str, function: Any) -> Operation:
    return Operation(name, 1, most, make, onnx, function, within(0, 1), takes=("bool",), gives="bool")


def _composed(name: str, arity: int, template: Tree, make: Any = None, *, gives: Kind = "real") -> Operation:
    return Operation(name, arity, arity, make, domain="that of its parts", gives=gives, composed=template)


_X, _Y = ["arg", 0], ["arg", 1]
_ONE, _TWO = ["int", 1], ["int", 2]


def _over(tree: Tree) -> Tree:
    return ["reciprocal", tree]


_ROWS = (
    # n-ary and binary arithmetic
    # `takes` and `gives` default to real numbers; bounds answer None where a value might not be finite.
    Operation("add", 1, None, sympy.Add, "Add", np.add, interval.add),
    Operation("mul", 1, None, sympy.Mul, "Mul", np.multiply, interval.mul),
    Operation("sub", 2, 2, _minus_of, "Sub", np.subtract, interval.sub),
    Operation("div", 2, 2, _divide, "Div", np.divide, interval.div, "y ≠ 0; ±inf or NaN at 0"),
    Operation("neg", 1, 1, _minus, "Neg", np.negative, interval.neg),
    Operation("reciprocal", 1, 1, _power(sympy.S.NegativeOne), "Reciprocal", np.reciprocal, interval.reciprocal, "x ≠ 0"),
    Operation("pow", 2, 2, sympy.Pow, "Pow", np.power, interval.power, "x ≥ 0, or an integer y (lowered to products)"),
    Operation("maximum", 1, None, sympy.Max, "Max", np.maximum, interval.maximum),
    Operation("minimum", 1, None, sympy.Min, "Min", np.minimum, interval.minimum),
    # elementary functions
    _unary("sqrt", _power(sympy.S.Half), "Sqrt", np.sqrt, monotone(np.sqrt, least=0), "x ≥ 0"),
    # No upper end for what grows: `widen` refuses what leaves the float32 range.
    _unary("exp", sympy.exp, "Exp", np.exp, monotone(np.exp), "x < 88.7, the float32 range"),
    _unary("log", sympy.log, "Log", np.log, monotone(np.log, least=1e-37), "x > 0; −inf at 0"),
    _unary("sin", sympy.sin, "Sin", np.sin, within(-1, 1)),
    _unary("cos", sympy.cos, "Cos", np.cos, within(-1, 1)),
    _unary("tan", sympy.tan, "Tan", np.tan, interval.tan, "between poles"),
    _unary("asin", sympy.asin, "Asin", np.arcsin, monotone(np.arcsin, -1, 1), "|x| ≤ 1"),
    _unary("acos", sympy.acos, "Acos", np.arccos, monotone(np.arccos, -1, 1, falling=True), "|x| ≤ 1"),
    _unary("atan", sympy.atan, "Atan", np.arctan, monotone(np.arctan)),
    _unary("sinh", sympy.sinh, "Sinh", np.sinh, monotone(np.sinh), "|x| < 89.4, the float32 range"),
    _unary("cosh", sympy.cosh, "Cosh", np.cosh, interval.cosh, "|x| < 89.4, the float32 range"),
    _unary("tanh", sympy.tanh, "Tanh", np.tanh, monotone(np.tanh)),
    _unary("asinh", sympy.asinh, "Asinh", np.arcsinh, monotone(np.arcsinh)),
    _unary("acosh", sympy.acosh, "Acosh", np.arccosh, monotone(np.arccosh, least=1), "x ≥ 1"),
    _unary("atanh", sympy.atanh, "Atanh", np.arctanh, monotone(np.arctanh, -0.99999, 0.99999), "|x| < 1; ±inf at ±1"),
    _unary("erf", sympy.erf, "Erf", special.erf, monotone(special.erf)),
    _unary("abs", sympy.Abs, "Abs", np.abs, interval.absolute),
    _unary("sign", sympy.sign, "Sign", np.sign, monotone(np.sign)),
    _unary("floor", sympy.floor, "Floor", np.floor, monotone(np.floor)),
    _unary("ceil", sympy.ceiling, "Ceil", np.ceil, monotone(np.ceil)),
    # conditions, and the one place they lead to a number
    _compare("lt", sympy.StrictLessThan, "Less", np.less),
    _compare("le", sympy.LessThan, "LessOrEqual", np.less_equal),
    _compare("gt", sympy.StrictGreaterThan, "Greater", np.greater),
    _compare("ge", sympy.GreaterThan, "GreaterOrEqual", np.greater_equal),
    _compare("eq", sympy.Equality, "Equal", np.equal),
    _logic("logical_and", None, sympy.And, "And", np.logical_and),
    _logic("logical_or", None, sympy.Or, "Or", np.logical_or),
    _logic("logical_not", 1, sympy.Not, "Not", np.logical_not),
    Operation("where", 3, 3, _where, "Where", np.where, interval.where, takes=("bool", "real", "real")),
    # composed: names of the engines (pyoperon, PySR) and of sympy classes without an operator of their own
    _composed("ne", 2, ["logical_not", ["eq", _X, _Y]], sympy.Unequality, gives="bool"),
    _composed("square", 1, ["pow", _X, _TWO]),
    _composed("cube", 1, ["pow", _X, ["int", 3]]),
    _composed("inv", 1, _over(_X)),
    _composed("max", 2, ["maximum", _X, _Y]),
    _composed("min", 2, ["minimum", _X, _Y]),
    _composed("relu", 1, ["maximum", ["int", 0], _X]),
    _composed("sigmoid", 1, _over(["add", _ONE, ["exp", ["neg", _X]]])),
    _composed("aq", 2, ["div", _X, ["sqrt", ["add", _ONE, ["pow", _Y, _TWO]]]]),
    _composed("powabs", 2, ["pow", ["abs", _X], _Y]),
    _composed("logabs", 1, ["log", ["abs", _X]]),
    _composed("sqrtabs", 1, ["sqrt", ["abs", _X]]),
    _composed("cbrt", 1, ["mul", ["sign", _X], ["pow", ["abs", _X], ["rational", 1, 3]]]),
    # ONNX has no Log1p: below 1e-7 this form answers 0 where log1p(x) = x
    _composed("log1p", 1, ["log", ["add", _ONE, _X]]),
    _composed("log2", 1, ["div", ["log", _X], ["log", _TWO]]),
    _composed("log10", 1, ["div", ["log", _X], ["log", ["int", 10]]]),
    # the sign of y, as in sympy and Python; ONNX Mod(fmod=1) and C have the sign of x
    _composed("mod", 2, ["sub", _X, ["mul", _Y, ["floor", ["div", _X, _Y]]]], sympy.Mod),
    _composed("cot", 1, _over(["tan", _X]), sympy.cot),
    _composed("sec", 1, _over(["cos", _X]), sympy.sec),
    _composed("csc", 1, _over(["sin", _X]), sympy.csc),
    _composed("coth", 1, _over(["tanh", _X]), sympy.coth),
    _composed("sech", 1, _over(["cosh", _X]), sympy.sech),
    _composed("csch", 1, _over(["sinh", _X]), sympy.csch),
)

OPERATIONS: dict[str, Operation] = {row.name: row for row in _ROWS}
PRIMITIVES: dict[str, Operation] = {row.name: row for row in _ROWS if row.composed is None}
COMMUTATIVE = frozenset({"add", "mul", "maximum", "minimum", "eq", "logical_and", "logical_or"})


def operation(name: str) -> Operation:
    """The row of a name. Raises ValueError with the nearest known one."""
    if name in OPERATIONS:
        return OPERATIONS[name]
    # Closest matches take time quadratic in the length, and a long name is no slip of the pen.
    near = difflib.get_close_matches(name, OPERATIONS, n=1, cutoff=0.5) if len(name) < 40 else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"no operation {name[:40]!r}{hint} There are: {', '.join(OPERATIONS)}")


def apply(name: str, *args: Tree) -> Tree:
    """The tree of an operation on argument trees, with a composed row expanded into primitives.

    >>> apply("logabs", ["var", 0])
    ['log', ['abs', ['var', 0]]]
    """
    row = operation(name)
    if len(args) < row.least or len(args) > (row.most or len(args)):
        raise ValueError(f"operation {name!r} takes {row.arity} argument(s), got {len(args)}")
    return [name, *args] if row.composed is None else _substitute(row.composed, args)


def _substitute(template: Tree, args: tuple[Tree, ...]) -> Tree:
    if template[0] == "arg":
        return args[template[1]]
    parts = [_substitute(cast("Tree", part), args) if isinstance(part, list) else part for part in template[1:]]
    return [template[0], *parts]
