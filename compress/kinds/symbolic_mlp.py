"""MLP(x) = outer([expressions(z); rest]), [z; rest] = basis @ x + [offset; 0]: closed forms of a few latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

from pydantic import model_validator

from compress.kinds._symbolic_source import base_class, layer_class
from compress.kinds.contract import Kind, Name, Place, Positive, Size, Work
from compress.nn.symbolic import SymbolicMLP
from compress.source.pieces import MLPSource
from compress.symbolic.compile import compile_program, program_to_json
from compress.symbolic.operations import Tree
from compress.symbolic.program import Program


class Symbolic(Kind):
    """`expressions` are trees over `inputs` latents and `constants` numbers, one per output; `affine` latents go through as
    they are. Here, and nowhere else, stored expressions turn into something that runs.
    """

    kind = "symbolic_mlp"
    replaces = "mlp"
    runtime = SymbolicMLP
    computed = ("expressions", "program")

    outer: Name
    d_model: Positive
    inputs: Positive
    outputs: Positive
    affine: Size
    constants: Size
    clamp: bool
    expressions: list[Any]

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if len(self.expressions) != self.outputs:
            raise ValueError(f"{len(self.expressions)} expressions for {self.outputs} outputs; there must be one each")
        # Compiled now, so that an expression that cannot run is refused with the other options, before anything is built.
        _ = self.program
        return self

    @cached_property
    def program(self) -> Program:
        """The checked expressions, compiled. Raises ValueError as `compile_program` does."""
        trees: list[Tree] = self.expressions
        return compile_program(trees, self.inputs, self.constants)

    def arguments(self) -> dict[str, Any]:
        """With the compiled program in the place of the expressions."""
        given = super().arguments()
        # The runtime knows torch only: it is handed the program, not the trees.
        del given["expressions"]
        return given | {"program": program_to_json(self.program)}

    def work(self, module: Any, place: Place) -> Work:
        """The matrices, and one for every operation."""
        return Work(super().work(module, place).matrices, programs=len(self.program.instructions))

    def torch_mlp(self, layer: int) -> MLPSource:
        """A subclass of its own, since each layer has other expressions."""
        # The generated class has ranges only where it clamps.
        kept = ["basis", "offset", *(["low", "high"] if self.clamp else [])]
        tensors = {name: name for name in kept} | {
            "constants": "program.constants",
            "outer.weight": f"{self.outer}.weight",
            "outer.bias": f"{self.outer}.bias",
        }
        sizes = {"inputs": self.inputs, "outputs": self.outputs, "affine": self.affine, "constants": self.constants}
        # Sizes of 0 are the generated class's defaults.
        given = [f"{name}={size}" for name, size in sizes.items() if size] + ["clamp=False"] * (not self.clamp)
        return MLPSource(f"SymbolicMLP{layer}({', '.join(given)})", tensors, told="SymbolicMLP")

    @classmethod
    def torch_classes(cls, placed: Mapping[int, Self]) -> Sequence[str]:
        """The class that all share, then one for each layer."""
        shared = base_class(any(kind.affine for kind in placed.values()), {kind.clamp for kind in placed.values()})
        return (shared, *(layer_class(layer, kind.program) for layer, kind in placed.items()))
