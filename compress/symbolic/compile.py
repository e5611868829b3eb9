"""Trees to a program, and a program to and from JSON: the only place where stored expressions become something that runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from compress.symbolic.expression import check_tree, fold, tree_children
from compress.symbolic.lowering import Lowering, Value
from compress.symbolic.operations import PRIMITIVES, Tree
from compress.symbolic.program import Program
from compress.symbolic.schedule import schedule


def compile_program(trees: Sequence[Tree], n_inputs: int, n_constants: int) -> Program:
    """One program for all `trees`, output i the value of tree i. Deterministic.

    Raises ValueError, with the tree's position, as `check_tree` does and where a part made of literals alone is not finite.
    """
    lowering = Lowering()
    outputs: list[Value] = []
    for i, tree in enumerate(trees):
        try:
            check_tree(tree, n_inputs, n_constants)
            outputs.append(fold(tree, tree_children, lowering.node))
        except ValueError as error:
            raise ValueError(f"expression {i}: {error}") from None
    literals, instructions, registers = lowering.finish(outputs, n_inputs, n_constants)
    return Program(n_inputs, n_constants, literals, instructions, registers)


def program_to_json(program: Program) -> dict[str, Any]:
    """JSON values, with the batched form as "steps"; a NaN literal, which JSON cannot hold, is null.

    >>> program = compile_program([["mul", ["var", 0], ["var", 0]]], n_inputs=1, n_constants=0)
    >>> program_from_json(program_to_json(program)) == program
    True
    """
    return {
        "inputs": program.n_inputs,
        "constants": program.n_constants,
        "literals": [None if math.isnan(v) else v for v in program.literals],
        "instructions": [[name, list(args)] for name, args in program.instructions],
        "outputs": list(program.outputs),
        "steps": schedule(program),
    }


def program_from_json(data: Mapping[str, Any]) -> Program:
    """Raises ValueError where an instruction is unknown, ill-typed, or reads a register that is not there yet."""
    program = Program(
        data["inputs"],
        data["constants"],
        tuple(math.nan if v is None else float(v) for v in data["literals"]),
        tuple((name, tuple(args)) for name, args in data["instructions"]),
        tuple(data["outputs"]),
    )
    # What each register holds, grown as it is read: an instruction may only read what is there, and of the kind it takes.
    kinds = ["real"] * program.first_instruction
    for name, args in program.instructions:
        row = PRIMITIVES.get(name)
        # A program has two arguments where a tree has any number: lowering folds them.
        count = row and (2 if row.most is None else row.least)
        # type, not isinstance: a JSON `true` would read register 1.
        if row is None or len(args) != count or not all(type(a) is int and 0 <= a < len(kinds) for a in args):
            raise ValueError(f"not an instruction at register {len(kinds)}: {name!r} {args}")
        # `takes` repeats its last kind; zip drops what is too much.
        takes = [*row.takes, *[row.takes[-1]] * len(args)]
        if any(kinds[a] != kind for a, kind in zip(args, takes, strict=False)):
            raise ValueError(f"{name!r} at register {len(kinds)} mixes conditions and numbers")
        kinds.append(row.gives)
    if not all(type(o) is int and 0 <= o < len(kinds) and kinds[o] == "real" for o in program.outputs):
        raise ValueError(f"outputs {program.outputs} must be real registers below {len(kinds)}")
    return program
