"""From tree nodes to instructions: every node is put into a canonical form, and a form seen before is not computed again.

Values are named by (space, index) until all are known: inputs, instructions, constants, literals, in this order, which is also
the order of a sum's terms and a product's factors; so products that differ only in their constants share their variables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compress.symbolic.operations import COMMUTATIVE, PRIMITIVES, Tree

Value = tuple[int, int]
INPUT, RESULT, CONSTANT, LITERAL = range(4)
_MAX_POWER = 8  # beyond it Pow is no slower than the products


class Lowering:
    """Collects the instructions of any number of trees: `node` is the visitor of a post-order fold over a tree."""

    def __init__(self) -> None:
        self._literals: dict[float | str, int] = {}
        self._values: list[float] = []
        # Every instruction so far, and its value: what is asked for again is found here (hash-consing).
        self._known: dict[tuple[str, tuple[Value, ...]], Value] = {}
        self._code: list[tuple[str, tuple[Value, ...]]] = []

    def node(self, node: Tree, args: list[Value]) -> Value:
        """The value of one checked tree node, given the values of its arguments."""
        match node:
            case ["var", i]:
                return INPUT, i
            case ["param", k]:
                return CONSTANT, k
            case ["int", n]:
                return self._literal(float(n))
            case ["rational", p, q]:
                return self._literal(p / q)
            case ["nan"]:
                return self._literal(math.nan, nan=True)
            case _:
                return self._operation(node[0], args)

    def _operation(self, name: str, args: list[Value]) -> Value:
        """Arithmetic in its canonical form; everything else is an instruction as it is."""
        rules: dict[str, Callable[..., Value]] = {
            "add": self._sum,
            "mul": self._product,
            "sub": self._difference,
            "neg": self._neg,
            "div": self._quotient,
            "reciprocal": self._reciprocal,
            "pow": self._power,
        }
        if name in rules:
            return rules[name](*args)
        return self._chain(name, args) if PRIMITIVES[name].most is None else self._emit(name, *args)

    def finish(
        self, outputs: Sequence[Value], n_inputs: int, n_constants: int
    ) -> tuple[tuple[float, ...], tuple[tuple[str, tuple[int, ...]], ...], tuple[int, ...]]:
        """(literals, instructions, outputs) by register number; what no output needs is dropped."""
        needed = set(outputs)  # grown backwards: an instruction reads earlier ones only
        for index in range(len(self._code) - 1, -1, -1):
            if (RESULT, index) in needed:
                needed.update(self._code[index][1])
        literals = [i for i in range(len(self._values)) if (LITERAL, i) in needed]
        results = [i for i in range(len(self._code)) if (RESULT, i) in needed]
        first = n_inputs + n_constants
        register = {(LITERAL, i): first + new for new, i in enumerate(literals)}
        register |= {(RESULT, i): first + len(literals) + new for new, i in enumerate(results)}

        def number(value: Value) -> int:
            # Whatever has not been renumbered is an input, in its own place, or a constant, after the inputs.
            return register.get(value, value[1] + (n_inputs if value[0] == CONSTANT else 0))

        code = tuple((name, tuple(map(number, args))) for name, args in (self._code[i] for i in results))
        return tuple(self._values[i] for i in literals), code, tuple(map(number, outputs))

    def _literal(self, value: float, nan: bool = False) -> Value:
        if math.isinf(value) or (math.isnan(value) and not nan):
            raise ValueError("a part of the expression that holds no variable and no parameter has no finite value")
        key = "nan" if math.isnan(value) else value + 0.0  # −0 + 0 is 0
        if key not in self._literals:
            self._literals[key] = len(self._values)
            self._values.append(value)
        return LITERAL, self._literals[key]

    def _number(self, value: Value) -> float | None:
        return self._values[value[1]] if value[0] == LITERAL else None

    def _operands(self, value: Value, name: str) -> tuple[Value, ...] | None:
        """The arguments of the instruction behind `value` where it is a `name`."""
        if value[0] != RESULT or self._code[value[1]][0] != name:
            return None
        return self._code[value[1]][1]

    def _emit(self, name: str, *args: Value) -> Value:
        # One order, so that x·y and y·x are one instruction.
        if name in COMMUTATIVE:
            args = tuple(sorted(args))
        # Literals alone are computed now and are a literal again; a condition has no literal form.
        if all(value[0] == LITERAL for value in args) and PRIMITIVES[name].gives == "real":
            function: Any = PRIMITIVES[name].numpy
            with np.errstate(all="ignore"):
                return self._literal(float(function(*(np.float64(self._values[index]) for _, index in args))))
        key = (name, args)
        if key not in self._known:
            self._known[key] = (RESULT, len(self._code))
            self._code.append(key)
        return self._known[key]

    def _chain(self, name: str, args: Sequence[Value]) -> Value:
        # Sorted, so that chains over the same values begin alike and share what they begin with.
        first, *rest = sorted(args)
        for value in rest:
            first = self._emit(name, first, value)
        return first

    def _neg(self, value: Value) -> Value:
        if (number := self._number(value)) is not None:
            return self._literal(-number)
        # −(−x) = x and −(a − b) = b − a.
        if inner := self._operands(value, "neg"):
            return inner[0]
        if inner := self._operands(value, "sub"):
            return self._emit("sub", inner[1], inner[0])
        return self._emit("neg", value)

    def _reciprocal(self, value: Value) -> Value:
        # 1 / (a / b) = b / a.
        if inner := self._operands(value, "div"):
            return self._emit("div", inner[1], inner[0])
        return self._emit("reciprocal", value)

    def _difference(self, x: Value, y: Value) -> Value:
        return self._sum(x, self._neg(y))

    def _quotient(self, x: Value, y: Value) -> Value:
        return self._product(x, self._reciprocal(y))

    def _sum(self, *args: Value) -> Value:
        plus: list[Value] = []
        minus: list[Value] = []
        offset = 0.0
        # Literals add up to one offset; what stands behind a minus is subtracted at the end.
        for value in args:
            if (number := self._number(value)) is not None:
                offset += number
            elif inner := self._operands(value, "neg"):
                minus.append(inner[0])
            else:
                plus.append(value)
        # A negative offset is subtracted, so that x − 2 and x + (−2) are one form.
        if offset < 0:
            minus.append(self._literal(-offset))
        elif offset or not plus + minus:
            plus.append(self._literal(offset))
        # Nothing is added: one minus in front of the sum of what is subtracted.
        if not plus:
            return self._neg(self._chain("add", minus))
        total = self._chain("add", plus)
        for value in sorted(minus):
            total = self._emit("sub", total, value)
        return total

    def _product(self, *args: Value) -> Value:
        """Divides by one factor after the other: their product could overflow where the quotient does not."""
        above: list[Value] = []
        below: list[Value] = []
        factor = 1.0
        for value in args:
            if (number := self._number(value)) is not None:
                factor *= number
                continue
            if inner := self._operands(value, "neg"):
                # The minus of a factor goes to the product as a whole, where two of them cancel.
                factor, value = -factor, inner[0]  # noqa: PLW2901
            inner = self._operands(value, "reciprocal")
            (below if inner else above).append(inner[0] if inner else value)
        # A factor of ±1 is no instruction; its sign is applied to the result.
        if abs(factor) != 1 or not above + below:
            above.append(self._literal(abs(factor)))
        below.sort()
        result = self._chain("mul", above) if above else self._emit("reciprocal", below.pop(0))
        for value in below:
            result = self._emit("div", result, value)
        return self._neg(result) if factor < 0 else result

    def _power(self, base: Value, exponent: Value) -> Value:
        """Integer and half-integer exponents up to 8 as products, square root and reciprocal."""
        number = self._number(exponent)
        if number is None or not (2 * number).is_integer() or abs(number) > _MAX_POWER:
            return self._emit("pow", base, exponent)
        whole, half = divmod(int(abs(2 * number)), 2)
        factors = [self._emit("sqrt", base)] if half else []
        # Square and multiply: `square` is base^(2^i) at bit i of the exponent.
        square = base
        while whole:
            if whole % 2:
                factors.append(square)
            whole //= 2
            if whole:
                square = self._emit("mul", square, square)
        result = self._product(*factors)
        return self._reciprocal(result) if number < 0 else result
