"""A program's values in float64, and the bounds that certify it finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compress.symbolic.interval import Interval, square, widen
from compress.symbolic.operations import PRIMITIVES
from compress.symbolic.program import Program


def evaluate_numpy(program: Program, inputs: np.ndarray, constants: Sequence[float]) -> np.ndarray:
    """inputs (n, n_inputs), constants (n_constants,) → (n, outputs), float64; silent about NaN and infinity."""
    inputs = np.asarray(inputs, dtype=np.float64)
    # Inputs are whole columns (n,); numbers stay scalars. np.float64 divides by zero to infinity, where a Python float raises.
    registers: list[Any] = [*inputs.T, *map(np.float64, constants), *map(np.float64, program.literals)]
    with np.errstate(all="ignore"):
        for name, args in program.instructions:
            function = PRIMITIVES[name].numpy
            assert function is not None
            registers.append(function(*(registers[a] for a in args)))
    # An output that reads no input is a scalar so far.
    return np.stack([np.broadcast_to(registers[o], len(inputs)) for o in program.outputs], axis=-1)


def certify(program: Program, constants: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[Interval] | None:
    """A range of every output over the box low ≤ z ≤ high, in float32 rounding, or None where some step might not be finite.

    >>> from compress.symbolic.compile import compile_program
    >>> program = compile_program([["reciprocal", ["var", 0]]], 1, 0)
    >>> certify(program, [], [-1.0], [1.0]) is None
    True
    """
    known = [*zip(low, high, strict=True), *((v, v) for v in constants), *((v, v) for v in program.literals)]
    registers: list[Interval] = []
    with np.errstate(all="ignore"):
        # Inputs, constants and literals are rounded too: at run time they are float32.
        for interval in known:
            if (wide := widen(interval)) is None:
                return None
            registers.append(wide)
        for name, args in program.instructions:
            # x·x is written as a product; knowing that both factors are one value keeps its range from going below 0.
            rule = square if name == "mul" and args[0] == args[1] else PRIMITIVES[name].bounds
            assert rule is not None
            result = widen(rule(registers[args[0]]) if rule is square else rule(*(registers[a] for a in args)))
            if result is None:
                return None
            registers.append(result)
    return [registers[o] for o in program.outputs]
