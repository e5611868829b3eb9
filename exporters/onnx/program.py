"""A program as text and as a graph: readable torch code, one line per shared part, and ONNX nodes in the batched form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.symbolic.interval import FLOAT32_MAX as _LARGEST
from compress.symbolic.interval import widen
from compress.symbolic.operations import PRIMITIVES
from compress.symbolic.schedule import schedule

if TYPE_CHECKING:
    import onnx

    from compress.symbolic.program import Program


def onnx_nodes(program: Program, z: str, constants: str, output: str, prefix: str = "") -> list[onnx.NodeProto]:
    """Nodes (opset ≥ 18) from tensor `z` (…, n_inputs) and `constants` (n_constants,), both float32, to `output` (…, outputs).

    Every other name starts with `prefix`; numbers are Constant nodes, so that the list can stand in a graph as well as in a
    FunctionProto. The batched form where there is one, so that a wide program is a dozen nodes.
    """
    nodes = _Nodes(prefix)
    steps = schedule(program)
    if steps is None:
        _straight(nodes, program, z, constants, output)
    else:
        _batched(nodes, program, steps, z=z, constants=constants, output=output)
    return nodes.made


class _Nodes:
    """Collects nodes; every call returns the name of the node's output."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.made: list[onnx.NodeProto] = []

    def __call__(self, op: str, *inputs: str, into: str | None = None, **attributes: Any) -> str:
        import onnx  # slow, and every load of a checkpoint imports this module

        name = into or f"{self.prefix}t{len(self.made)}"
        self.made.append(onnx.helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def number(self, values: Any, dtype: Any = np.int64) -> str:
        """A Constant node of these values."""
        import onnx

        return self("Constant", value=onnx.numpy_helper.from_array(np.asarray(values, dtype)))

    def split(self, tensor: str, count: int, axis: int) -> list[str]:
        """The slices of a tensor along an axis, each of size 1."""
        import onnx

        names = [f"{self.prefix}{tensor}{i}" for i in range(count)]
        self.made.append(onnx.helper.make_node("Split", [tensor], names, axis=axis, num_outputs=count))
        return names


def _batched(nodes: _Nodes, program: Program, steps: dict[str, Any], *, z: str, constants: str, output: str) -> None:
    # In the order of the schedule: constants, 1, literals, then the scalars as they are computed.
    fixed = nodes.number([1.0, *program.literals], np.float32)
    if program.n_constants:
        fixed = nodes("Concat", constants, fixed, axis=0)
    for name, args in steps["scalars"]:
        # Index lists of one: scalars are vectors of length 1, which can be joined.
        result = nodes(PRIMITIVES[name].onnx, *(nodes("Gather", fixed, nodes.number([a])) for a in args))
        fixed = nodes("Concat", fixed, result, axis=0)
    columns = _Columns(nodes, z, program.n_inputs)
    for level in steps["levels"]:
        # The whole level before any of it is appended: it reads earlier levels only.
        new = [_step(nodes, step, columns, fixed) for step in level]
        for made, step in zip(new, level, strict=True):
            ends = (nodes.number(end, np.float32) for end in (-_LARGEST, _LARGEST))
            finite = made if _stays_finite(step) else nodes("Clip", made, *ends)
            columns.append(finite, step["rows"] if step["op"] == "linear" else len(step["args"][0][1]))
    _linear(nodes, steps["final"], columns, fixed, into=output)


def _step(nodes: _Nodes, step: dict[str, Any], columns: _Columns, fixed: str) -> str:
    """One operation on columns → (…, members)"""
    if step["op"] == "linear":
        return _linear(nodes, step, columns, fixed)
    read = [columns.read(i) if kind == "column" else nodes("Gather", fixed, nodes.number(i)) for kind, i in step["args"]]
    return nodes(PRIMITIVES[step["op"]].onnx, *read)


def _stays_finite(step: dict[str, Any]) -> bool:
    """Whether no finite input gives an infinity, which times zero would be NaN in a later product."""
    rule = None if step["op"] == "linear" else PRIMITIVES[step["op"]].bounds
    with np.errstate(all="ignore"):
        return rule is not None and widen(rule(*[(-_LARGEST, _LARGEST)] * len(step["args"]))) is not None


class _Columns:
    """The growing matrix, in blocks: what one step made stays a tensor of its own and is copied only where it has to be."""

    def __init__(self, nodes: _Nodes, z: str, width: int) -> None:
        self._nodes, self._blocks, self._joined = nodes, [(z, range(width))], dict[tuple[int, ...], str]()

    def append(self, tensor: str, width: int) -> None:
        """Add what a step made, `width` columns."""
        start = self._blocks[-1][1].stop
        self._blocks.append((tensor, range(start, start + width)))

    def within(self, indices: Sequence[int]) -> tuple[str, int, list[int]]:
        """(tensor, its width, indices in it) of the blocks that hold these columns; the inputs for none."""
        touched = tuple(b for b, (_, own) in enumerate(self._blocks) if any(i in own for i in indices)) or (0,)
        if touched not in self._joined:
            names = [self._blocks[b][0] for b in touched]
            self._joined[touched] = names[0] if len(names) == 1 else self._nodes("Concat", *names, axis=-1)
        places = [i for b in touched for i in self._blocks[b][1]]
        at = {column: place for place, column in enumerate(places)}
        return self._joined[touched], len(places), [at[i] for i in indices]

    def read(self, indices: Sequence[int]) -> str:
        """These columns as one tensor (…, len(indices))."""
        tensor, width, at = self.within(indices)
        # All columns in order: the tensor as it is.
        if at == list(range(width)):
            return tensor
        if at == list(range(at[0], at[0] + len(at))):
            ends = (self._nodes.number([end]) for end in (at[0], at[0] + len(at), -1))
            return self._nodes("Slice", tensor, *ends)
        return self._nodes("Gather", tensor, self._nodes.number(at), axis=-1)


def _linear(nodes: _Nodes, step: dict[str, Any], columns: _Columns, fixed: str, *, into: str | None = None) -> str:
    """columns → (…, rows). The matrix is a function of the constants only: runtimes fold it when they load."""
    row, column, *values = step["weight"]
    tensor, width, at = columns.within(column)
    matrix = _scatter(nodes, [width, step["rows"]], list(zip(at, row, strict=True)), values, fixed)
    row, *values = step["bias"]
    if not row:
        return nodes("MatMul", tensor, matrix, into=into)
    bias = _scatter(nodes, [step["rows"]], [(r,) for r in row], values, fixed)
    return nodes("Add", nodes("MatMul", tensor, matrix), bias, into=into)


def _scatter(nodes: _Nodes, shape: list[int], at: Sequence[tuple[int, ...]], values: list[list[int]], fixed: str) -> str:
    """Zeros of a shape with sign · fixed[which] added at some places."""
    zeros = nodes("ConstantOfShape", nodes.number(shape))
    if not at:
        return zeros
    sign, which = values
    added = nodes("Mul", nodes("Gather", fixed, nodes.number(which)), nodes.number(sign, np.float32))
    # Where a place occurs twice ScatterND would keep one of the two, unless told to add.
    return nodes("ScatterND", zeros, nodes.number(at), added, **({"reduction": "add"} if len(set(at)) < len(at) else {}))


def _straight(nodes: _Nodes, program: Program, z: str, constants: str, output: str) -> None:
    """One node per instruction, on (…, 1) columns."""
    registers = nodes.split(z, program.n_inputs, axis=-1)
    first = registers[0]
    registers += nodes.split(constants, program.n_constants, axis=0) if program.n_constants else []
    registers += [nodes.number([value], np.float32) for value in program.literals]
    for name, args in program.instructions:
        registers.append(nodes(PRIMITIVES[name].onnx, *(registers[a] for a in args)))
    parts, varying = [], program.varying
    for register in program.outputs:
        # An output that reads no input takes the shape of a column.
        same = registers[register] if register in varying else nodes("Expand", registers[register], nodes("Shape", first))
        parts.append(same)
    nodes("Concat", *parts, axis=-1, into=output)
