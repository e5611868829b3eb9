"""Expressions as one straight-line program: the form that numpy, the torch interpreter, torch source and ONNX all run.

Registers hold the inputs, then the constants, then the literals, then one result per instruction. Equal parts are computed once
(hash-consing over canonically ordered arguments); small powers are products, reciprocals and square roots, because a general
power costs ten times as much in ONNX Runtime and torch.
"""

from __future__ import annotations

from dataclasses import dataclass

Instruction = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Program:
    """`outputs` are the registers of the expressions' values; every instruction reads registers before its own.

    >>> from compress.symbolic.compile import compile_program
    >>> program = compile_program([["mul", ["var", 0], ["var", 0]]], n_inputs=1, n_constants=0)
    >>> program.instructions, program.outputs
    ((('mul', (0, 0)),), (1,))
    """

    n_inputs: int
    n_constants: int
    literals: tuple[float, ...]
    instructions: tuple[Instruction, ...]
    outputs: tuple[int, ...]

    @property
    def first_instruction(self) -> int:
        """The register of the first instruction's result: after the inputs, the constants and the literals."""
        return self.n_inputs + self.n_constants + len(self.literals)

    @property
    def varying(self) -> frozenset[int]:
        """The registers whose value depends on an input; the others are the same for every token."""
        found = set(range(self.n_inputs))
        # One pass forward: an instruction reads earlier registers only.
        for register, (_, args) in enumerate(self.instructions, self.first_instruction):
            if not found.isdisjoint(args):
                found.add(register)
        return frozenset(found)
