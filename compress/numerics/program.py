"""Expressions as one straight-line program: the form that numpy, the torch interpreter, torch source and ONNX all run.

Registers hold the inputs, then the constants, then the literals, then one result per instruction. Equal parts are computed once
(hash-consing over canonically ordered arguments); small powers are products, reciprocals and square roots, because a general
power costs ten times as much in ONNX Runtime and torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from compress.numerics.emission import onnx_nodes, torch_source
from compress.numerics.expression import check_tree, fold, tree_children
from compress.numerics.interval import Interval, square, widen
from compress.numerics.lowering import Lowering
from compress.numerics.operations import PRIMITIVES, Tree
from compress.numerics.schedule import schedule

__all__ = [
    "Program",
    "certify",
    "compile_program",
    "evaluate_numpy",
    "onnx_nodes",
    "symbolic_options",
    "torch_source",
]

Instruction = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Program:
    """`outputs` are the registers of the expressions' values; every instruction reads registers before its own.

    >>> program = compile_program([["mul", ["var", 0], ["var", 0]]], n_inputs=1, n_constants=0)
    >>> program.instructions, program.outputs
    ((('mul', (0, 0)),), (1,))
    >>> Program.from_json(program.to_json()) == program
    True
    """

    n_inputs: int
    n_constants: int
    literals: tuple[float, ...]
    instructions: tuple[Instruction, ...]
    outputs: tuple[int, ...]

    @property
    def first_instruction(self) -> int:
        return self.n_inputs + self.n_constants + len(self.literals)

    @property
    def varying(self) -> frozenset[int]:
        """The registers whose value depends on an input; the others are the same for every token."""
        found = set(range(self.n_inputs))
        for register, (_, args) in enumerate(self.instructions, self.first_instruction):
            if not found.isdisjoint(args):
                found.add(register)
        return frozenset(found)

    def to_json(self) -> dict[str, Any]:
        """JSON values, with the batched form as "steps"; a NaN literal, which JSON cannot hold, is null."""
        return {
            "inputs": self.n_inputs,
            "constants": self.n_constants,
            "literals": [None if math.isnan(v) else v for v in self.literals],
            "instructions": [[name, list(args)] for name, args in self.instructions],
            "outputs": list(self.outputs),
            "steps": schedule(self),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises ValueError where an instruction is unknown, ill-typed, or reads a register that is not there yet."""
        program = cls(
            data["inputs"],
            data["constants"],
            tuple(math.nan if v is None else float(v) for v in data["literals"]),
            tuple((name, tuple(args)) for name, args in data["instructions"]),
            tuple(data["outputs"]),
        )
        kinds = ["real"] * program.first_instruction
        for name, args in program.instructions:
            row = PRIMITIVES.get(name)
            count = row and (2 if row.most is None else row.least)
            if row is None or len(args) != count or not all(type(a) is int and 0 <= a < len(kinds) for a in args):
                raise ValueError(f"not an instruction at register {len(kinds)}: {name!r} {args}")
            takes = [*row.takes, *[row.takes[-1]] * len(args)]
            if any(kinds[a] != kind for a, kind in zip(args, takes, strict=False)):
                raise ValueError(f"{name!r} at register {len(kinds)} mixes conditions and numbers")
            kinds.append(row.gives)
        if not all(type(o) is int and 0 <= o < len(kinds) and kinds[o] == "real" for o in program.outputs):
            raise ValueError(f"outputs {program.outputs} must be real registers below {len(kinds)}")
        return program


def compile_program(trees: Sequence[Tree], n_inputs: int, n_constants: int) -> Program:
    """One program for all `trees`, output i the value of tree i. Deterministic.

    Raises ValueError, with the tree's position, as `check_tree` does and where a part made of literals alone is not finite.
    """
    lowering = Lowering()
    outputs = []
    for i, tree in enumerate(trees):
        try:
            check_tree(tree, n_inputs, n_constants)
            outputs.append(fold(tree, tree_children, lowering.node))
        except ValueError as error:
            raise ValueError(f"expression {i}: {error}") from None
    literals, instructions, registers = lowering.finish(outputs, n_inputs, n_constants)
    return Program(n_inputs, n_constants, literals, instructions, registers)


def symbolic_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of `SymbolicMLP` from a spec's options as read from disk: checked `expressions` become `program`.

    The only place where stored expressions turn into something that runs. Raises ValueError as `compile_program` does.
    """
    options = dict(options)
    if not isinstance(trees := options.pop("expressions", None), list):
        raise ValueError("a symbolic_mlp needs `expressions`, a list of trees")
    for key, least in {"d_model": 1, "inputs": 1, "outputs": 1, "affine": 0, "constants": 0}.items():
        if type(options.get(key)) is not int or options[key] < least:
            raise ValueError(f"a symbolic_mlp needs `{key}`, an integer of {least} or more, got {options.get(key)!r}")
    if len(trees) != options["outputs"]:
        raise ValueError(f"{len(trees)} expressions for {options['outputs']} outputs; there must be one each")
    return options | {"program": compile_program(trees, options["inputs"], options["constants"]).to_json()}


def evaluate_numpy(program: Program, inputs: np.ndarray, constants: Sequence[float]) -> np.ndarray:
    """inputs (n, n_inputs), constants (n_constants,) → (n, outputs), float64; silent about NaN and infinity."""
    inputs = np.asarray(inputs, dtype=np.float64)
    registers: list[Any] = [*inputs.T, *map(np.float64, constants), *map(np.float64, program.literals)]
    with np.errstate(all="ignore"):
        for name, args in program.instructions:
            function = PRIMITIVES[name].numpy
            assert function is not None
            registers.append(function(*(registers[a] for a in args)))
    return np.stack([np.broadcast_to(registers[o], len(inputs)) for o in program.outputs], axis=-1)


def certify(program: Program, constants: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[Interval] | None:
    """A range of every output over the box low ≤ z ≤ high, in float32 rounding, or None where some step might not be finite.

    >>> program = compile_program([["reciprocal", ["var", 0]]], 1, 0)
    >>> certify(program, [], [-1.0], [1.0]) is None
    True
    """
    known = [*zip(low, high, strict=True), *((v, v) for v in constants), *((v, v) for v in program.literals)]
    registers: list[Interval] = []
    with np.errstate(all="ignore"):
        for interval in known:
            if (wide := widen(interval)) is None:
                return None
            registers.append(wide)
        for name, args in program.instructions:
            rule = square if name == "mul" and args[0] == args[1] else PRIMITIVES[name].bounds
            assert rule is not None
            result = widen(rule(registers[args[0]]) if rule is square else rule(*(registers[a] for a in args)))
            if result is None:
                return None
            registers.append(result)
    return [registers[o] for o in program.outputs]
