"""sympy ⇄ a JSON tree that is safe to read from disk.

A tree is a nested list, `["add", ["mul", ["param", 0], ["var", 3]], ["int", 2]]`: the name of a primitive operation and its
arguments. Numbers a fit may tune are `["param", k]`, entry k of a vector stored as a tensor; integers and small fractions stay
in the tree, because an exponent that drifted off 2 would turn negative bases into NaN. Nothing here parses text.
"""
# sympy has annotations here and there, but declares none.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import sympy
from sympy.printing.latex import latex
from sympy.printing.str import sstr

from compress.symbolic.operations import LEAVES, OPERATIONS, PRIMITIVES, Kind, Tree, apply, operation

__all__ = ["OPERATIONS", "Tree", "check_tree", "complexity", "from_tree", "join", "symbols", "to_latex", "to_text", "to_tree"]

MAX_NODES = 10_000
MAX_DEPTH = 100  # sympy's printers recurse; JSON and copy.deepcopy too
MAX_INTEGER = 2**53  # what a float64 holds exactly
_MAX_DENOMINATOR = 1000  # a "small fraction"; others become parameters

# Classes only: what rows make by a function (sub, div, sqrt) sympy itself holds as Add, Mul and Pow.
_READS = {row.sympy: row.name for row in OPERATIONS.values() if isinstance(row.sympy, type)}
T = TypeVar("T")


def symbols(count: int, prefix: str = "z") -> tuple[sympy.Symbol, ...]:
    """z0, z1, …: real, so that sympy's own rewriting stays within real arithmetic (√x² = |x|)."""
    return tuple(sympy.Symbol(f"{prefix}{i}", real=True) for i in range(count))


def fold(root: T, children: Callable[[T], Sequence[T]], visit: Callable[[T, list[Any]], Any]) -> Any:
    """Post-order without recursion: `visit(node, results of its children)`; the result for the root."""
    order: list[tuple[T, int]] = []
    stack = [(root, children(root))]
    while stack:
        node, below = stack.pop()
        order.append((node, len(below)))
        stack.extend((child, children(child)) for child in below)
    results: list[Any] = []
    for node, count in reversed(order):  # reversed pre-order from the right is post-order from the left
        split = len(results) - count
        results[split:] = [visit(node, results[split:])]
    return results[0]


def tree_children(node: Tree) -> list[Tree]:
    """The argument trees of a node; what follows a leaf's name are numbers."""
    return [] if node[0] in LEAVES else node[1:]


def to_tree(expression: sympy.Expr, symbols: Sequence[sympy.Symbol]) -> tuple[Tree, list[float]]:
    """Tree and constants of a real expression; equal constants share one parameter.

    Parts without a variable become one number. Raises ValueError for a symbol that is not given, a function without operator in
    torch and ONNX, a part that is complex or not finite, and an expression beyond the limits.

    >>> x, y = sympy.symbols("x y", real=True)
    >>> to_tree(2 * x + sympy.Float(0.5) * sympy.sin(y), [x, y])
    (['add', ['mul', ['int', 2], ['var', 0]], ['mul', ['param', 0], ['sin', ['var', 1]]]], [0.5])
    """
    position = {symbol: i for i, symbol in enumerate(symbols)}
    constants: dict[float, int] = {}

    def visit(node: Any, args: list[Tree]) -> Tree:
        if node in position:
            return ["var", position[node]]
        # Before the parts without a variable, of which it is one: there it would be refused as not finite.
        if node is sympy.S.NaN:
            return ["nan"]
        if not node.free_symbols:
            return _number(node, constants)
        if isinstance(node, sympy.Piecewise):
            return _piecewise(node, args)
        name = _READS.get(node.func)
        if name is None:
            what = f"the symbol {node}" if isinstance(node, sympy.Symbol) else f"{node.func.__name__}(…)"
            raise ValueError(f"{what} cannot be exported; known are the symbols {list(position)} and {', '.join(PRIMITIVES)}")
        return apply(name, *args)

    root: Any = sympy.sympify(expression, strict=True)  # strict: objects and numbers only, a string is refused, never parsed
    if root.has(sympy.ITE):  # sympy's rewriting of a condition about a Piecewise
        root = root.replace(sympy.ITE, _either)
    tree = fold(root, _sympy_children, visit)
    check_tree(tree, len(position), len(constants))
    return tree, list(constants)


def _either(condition: Any, x: Any, y: Any) -> Any:
    """x where the condition holds, else y, of conditions: what the table has operations for."""
    return (condition & x) | (~condition & y)


def _sympy_children(node: Any) -> list[Any]:
    # Nothing below: `visit` makes one number of the whole part.
    if not node.free_symbols:
        return []
    # The (value, condition) pairs as one flat list, which `_piecewise` takes apart again.
    if isinstance(node, sympy.Piecewise):
        return [part for pair in node.args for part in pair.args]
    # sympy writes √x as x**0.5 where a float was involved; as a float the exponent would become a parameter.
    if isinstance(node, sympy.Pow) and node.exp.is_Float and float(2 * node.exp).is_integer():
        return [node.base, sympy.Rational(int(2 * node.exp), 2)]
    return list(node.args)


def _number(node: Any, constants: dict[float, int]) -> Tree:
    """A leaf for an expression without variables."""
    if node.is_Integer and abs(int(node)) <= MAX_INTEGER:
        return ["int", int(node)]
    if node.is_Rational and abs(node.p) <= MAX_INTEGER and 1 < node.q <= _MAX_DENOMINATOR:
        return ["rational", int(node.p), int(node.q)]
    if isinstance(node, sympy.logic.boolalg.BooleanAtom):
        return ["bool", bool(node)]
    # 17 significant digits tell every float64 from its neighbours.
    value = node.evalf(17)
    if not value.is_real or not value.is_finite or not math.isfinite(float(value)):
        raise ValueError(f"{reprlib.repr(node)} is not a finite real number")
    # An entry's index is the order of arrival: `list(constants)` is the vector.
    return ["param", constants.setdefault(float(value), len(constants))]


def _piecewise(node: sympy.Piecewise, args: list[Tree]) -> Tree:
    """Nested `where`; what no condition covers is NaN, as in numpy."""
    tree: Tree = ["nan"]
    # From the last pair to the first, so that the first condition that holds decides.
    for value, condition in zip(args[-2::-2], args[::-2], strict=True):
        tree = value if condition == ["bool", True] else ["where", condition, value, tree]
    return tree


def from_tree(tree: Tree, symbols: Sequence[sympy.Symbol], constants: Sequence[float], evaluate: bool = False) -> sympy.Expr:
    """The expression of a tree. Untrusted trees need `evaluate=False`: sympy would compute exp(exp(10⁹)) to the last digit.

    Raises ValueError as `check_tree` does, and for constants that are not finite.
    """
    check_tree(tree, len(symbols), len(constants))
    if any(not math.isfinite(c) for c in constants):
        raise ValueError("constants must be finite numbers")

    def visit(node: Tree, args: list[Any]) -> Any:
        match node:
            case ["var", i]:
                return symbols[i]
            case ["param", k]:
                number: float = constants[k]
                return sympy.Float(number)
            case ["int", n]:
                return sympy.Integer(n)
            case ["rational", p, q]:
                return sympy.Rational(p, q)
            case ["nan"]:
                return sympy.S.NaN
            case _:
                name: str = node[0]
                make = PRIMITIVES[name].sympy
                assert make is not None
                try:
                    return make(*args, evaluate=evaluate)
                except TypeError as error:  # sympy's word for a comparison with nan, which it computes all the same
                    raise ValueError(f"{name}: {error}") from error

    return fold(tree, tree_children, visit)


def check_tree(tree: Any, n_inputs: int, n_constants: int) -> None:
    """Raises ValueError where `tree` is not a well-formed real expression; never recurses, stops at MAX_NODES."""
    stack: list[tuple[Any, int, Kind]] = [(tree, 1, "real")]
    nodes = 0
    while stack:
        found, depth, kind = stack.pop()
        nodes += 1
        if nodes > MAX_NODES:
            raise ValueError(f"the expression has more than {MAX_NODES} nodes; fit a simpler one")
        if depth > MAX_DEPTH:
            raise ValueError(f"the expression is nested deeper than {MAX_DEPTH}; fit a simpler one")
        # type, not isinstance: JSON gives plain lists, strings and integers, and True is no integer here.
        if type(found) is not list or not found or type(cast("Tree", found)[0]) is not str:
            raise ValueError(f"expected a list that starts with an operation's name, got {reprlib.repr(cast(object, found))}")
        node = cast("Tree", found)
        # Before anything is pushed: one node with a million arguments must not fill the stack.
        if len(node) > MAX_NODES:
            raise ValueError(f"the expression has more than {MAX_NODES} nodes; fit a simpler one")
        name, args = node[0], node[1:]
        if name in LEAVES:
            _check_leaf(node, {"var": n_inputs, "param": n_constants}.get(name))
            gives: Kind = "real"
        else:
            row = operation(name)
            # Read from disk: one spelling for one function, so that whatever walks a tree knows the primitives alone.
            if row.composed is not None:
                raise ValueError(
                    f"{name!r} is not a primitive; write it as {apply(name, *[['var', i] for i in range(row.least)])}"
                )
            if not row.least <= len(args) <= (row.most or MAX_NODES):
                raise ValueError(f"{name!r} takes {row.arity} argument(s), got {len(args)}")
            kinds = row.takes + row.takes[-1:] * (len(args) - len(row.takes))
            stack.extend((arg, depth + 1, kind) for arg, kind in zip(args, kinds, strict=False))
            gives = row.gives
        if gives != kind:
            raise ValueError(f"{name!r} is {gives} where a {kind} value is needed")


def _check_leaf(node: list[Any], limit: int | None) -> None:
    name, numbers = node[0], node[1:]
    if len(numbers) != LEAVES[name] or any(type(n) is not int for n in numbers):
        raise ValueError(f"{name!r} takes {LEAVES[name]} integer(s), got {reprlib.repr(numbers)}")
    if any(abs(n) > MAX_INTEGER for n in numbers):
        raise ValueError(f"{name!r}: integers go up to 2**53, got one with {max(n.bit_length() for n in numbers)} bits")
    if limit is not None and not 0 <= numbers[0] < limit:
        raise ValueError(f"{name!r} {numbers[0]} is out of range; there are {limit}, from 0")
    if name == "rational" and numbers[1] < 1:
        raise ValueError(f"'rational' needs a positive denominator, got {numbers[1]}")


def complexity(tree: Tree, weights: Mapping[str, int] | None = None) -> int:
    """Nodes of the tree with sums and products counted as binary, 2·z0 + z1 + 1 is 7; `weights` of operations, where not 1.

    >>> complexity(["add", ["mul", ["int", 2], ["var", 0]], ["var", 1], ["int", 1]])
    7
    """
    weights = weights or {}
    # n arguments are n − 1 binary operations; a leaf counts as one.
    return fold(tree, tree_children, lambda node, below: sum(below) + weights.get(node[0], 1) * max(1, len(below) - 1))


def join(parts: Sequence[tuple[Tree, Sequence[float]]]) -> tuple[list[Tree], list[float]]:
    """Trees over one common vector of constants; (trees, constants) of parts that each have their own.

    >>> join([(["param", 0], [2.0]), (["sin", ["param", 0]], [3.0])])
    ([['param', 0], ['sin', ['param', 1]]], [2.0, 3.0])
    """
    trees: list[Tree] = []
    constants: list[float] = []
    for tree, own in parts:
        start = len(constants)
        trees.append(_shifted(tree, start))
        constants.extend(own)
    return trees, constants


def _shifted(tree: Tree, start: int) -> Tree:
    def visit(node: Tree, args: list[Tree]) -> Tree:
        if node[0] == "param":
            return ["param", node[1] + start]
        return list(node) if node[0] in LEAVES else [node[0], *args]

    return fold(tree, tree_children, visit)


def _rounded(tree: Tree, names: Sequence[str], constants: Sequence[float], digits: int) -> sympy.Expr:
    shown = [float(f"{c:.{digits}g}") for c in constants]
    return from_tree(tree, [sympy.Symbol(name, real=True) for name in names], shown)


def to_text(tree: Tree, constants: Sequence[float], names: Sequence[str], digits: int = 4) -> str:
    """One line of mathematics, constants rounded for reading.

    >>> to_text(["sub", ["mul", ["param", 0], ["var", 0]], ["exp", ["var", 1]]], [0.123456], ["z0", "z1"])
    '0.1235*z0 - exp(z1)'
    """
    # Sorting terms would make sympy evaluate numeric parts; the tree's own order is kept.
    return sstr(_rounded(tree, names, constants, digits), order="none", full_prec=False)


def to_latex(tree: Tree, constants: Sequence[float], names: Sequence[str], digits: int = 4) -> str:
    """The same in LaTeX."""
    return latex(_rounded(tree, names, constants, digits), order="none")
