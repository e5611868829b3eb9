"""Symbolic surrogates as named ONNX functions: one box per layer in a viewer, inlined by the runtime at load."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from compress.nn.symbolic import ExpressionProgram
from compress.symbolic.program import Program
from exporters.onnx.program import onnx_nodes

DOMAIN = "compress"


@contextmanager
def surrogates_as_functions(model: nn.Module) -> Iterator[dict[str, Program]]:
    """Inside, every expression program of `model` traces as one call of the function `surrogate_layer_I`; yields them by name.

    Only for tracing: such a call computes zeros when it is run.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, ExpressionProgram)}
    programs: dict[str, Program] = {}
    try:
        for path, module in modules.items():
            name = _unused(f"surrogate_layer_{_layer(path)}", programs)
            programs[name] = program_of(module)
            # On the instance, where it hides the class's own until it is taken off.
            module.forward = _call(module, name)  # type: ignore[method-assign]
        yield programs
    finally:
        for module in modules.values():
            module.__dict__.pop("forward", None)  # the class's own forward is back


def attach(model: ir.Model, programs: dict[str, Program]) -> None:
    """Put the functions' bodies into a model that was traced inside `surrogates_as_functions`."""
    for name, program in programs.items():
        function = ir.serde.deserialize_function(function_proto(name, program, model.opset_imports[""]))
        model.functions[function.identifier()] = function
    # A graph imports the domain of every function that it calls.
    if programs:
        model.opset_imports[DOMAIN] = 1


def function_proto(name: str, program: Program, opset: int) -> onnx.FunctionProto:
    """z (…, inputs) and, where there are any, constants (n,) → y (…, outputs), all float32."""
    inputs = ["z", "constants"] if program.n_constants else ["z"]
    nodes = onnx_nodes(program, "z", "constants", "y")
    imports = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_function(DOMAIN, name, inputs, ["y"], nodes, imports)


def program_of(module: ExpressionProgram) -> Program:
    """The program that a module interprets."""
    return Program(
        module.inputs, module.constants.numel(), tuple(module.literals), tuple(module.instructions), tuple(module.outputs)
    )


def _call(module: ExpressionProgram, name: str) -> Callable[[Tensor], Tensor]:
    def forward(z: Tensor) -> Tensor:
        """z (..., inputs) float32 → (..., outputs)"""
        # The constants are handed in, so that they stay weights of the graph.
        inputs = (z, module.constants) if module.constants.numel() else (z,)
        shape = (*z.shape[:-1], len(module.outputs))
        return torch.onnx.ops.symbolic(f"{DOMAIN}::{name}", inputs, dtype=z.dtype, shape=shape, version=1)

    return forward


def _layer(path: str) -> str:
    """The decoder layer in a module's name: `model.layers.3.mlp.program` → 3."""
    found = re.search(r"\.(\d+)(?=\.)", path)
    return found[1] if found else path.replace(".", "_")


def _unused(name: str, taken: dict[str, Program]) -> str:
    """`name`, or `name_2`, … where a layer has more than one."""
    number = 1
    while (candidate := name if number == 1 else f"{name}_{number}") in taken:
        number += 1
    return candidate
