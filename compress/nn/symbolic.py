"""MLP replacement by closed-form expressions. Torch only: the standalone exporter inlines these classes' source."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ExpressionProgram(nn.Module):
    """Interprets a straight-line program (`compress.numerics.program.Program.to_json`): y_o = expression_o(z; constants).

    Each instruction names a torch function and the registers it reads; registers are the columns of z, the constants, the
    literals and one result per instruction.
    """

    def __init__(self, program: dict[str, Any]) -> None:
        super().__init__()
        self.inputs: int = program["inputs"]
        self.literals = [float("nan") if value is None else float(value) for value in program["literals"]]
        self.instructions = [(name, tuple(args)) for name, args in program["instructions"]]
        self.outputs = tuple(program["outputs"])
        # float32 by name: a checkpoint loaded in bfloat16 keeps it
        self.constants = nn.Parameter(torch.zeros(program["constants"], dtype=torch.float32))

    def forward(self, z: Tensor) -> Tensor:
        """z (..., inputs) float32 → (..., outputs)"""
        columns = z.split(1, dim=-1)  # (..., 1) each
        registers = [*columns, *self.constants.unbind(), *(z.new_full((), value) for value in self.literals)]
        for name, args in self.instructions:
            registers.append(getattr(torch, name)(*[registers[a] for a in args]))
        # an expression without a variable is a scalar until here
        return torch.cat([registers[o].expand_as(columns[0]) for o in self.outputs], dim=-1)


class SymbolicMLP(nn.Module):
    """MLP(x) = outer([expressions(z); rest]), with [z; rest] = basis @ x + [offset; 0].

    The expressions read `inputs` latents z, held within [low, high] where `clamp`: outside the calibrated range a closed form
    may do anything. `rest` (`affine` latents, possibly none) goes to the outer projection as it is.

    basis (inputs + affine, d_model), offset low high (inputs,) float32, outer.weight (d_model, outputs + affine),
    outer.bias (d_model,).
    """

    def __init__(
        self,
        outer: str,
        d_model: int,
        *,
        inputs: int,
        outputs: int,
        affine: int,
        constants: int,
        clamp: bool,
        program: dict[str, Any],
    ) -> None:
        super().__init__()
        if (program["inputs"], program["constants"], len(program["outputs"])) != (inputs, constants, outputs):
            raise ValueError(f"the program is not one of {inputs} inputs, {constants} constants and {outputs} outputs")
        self.outer, self.inputs, self.affine, self.clamp = outer, inputs, affine, clamp
        self.basis = nn.Parameter(torch.empty(inputs + affine, d_model))
        self.offset = nn.Parameter(torch.zeros(inputs, dtype=torch.float32))
        self.register_buffer("low", torch.full((inputs,), float("-inf"), dtype=torch.float32))
        self.register_buffer("high", torch.full((inputs,), float("inf"), dtype=torch.float32))
        self.program = ExpressionProgram(program)
        # Under the replaced projection's own name, so that a loader that does not know this class stops on its shape.
        self.add_module(outer, nn.Linear(outputs + affine, d_model))

    low: Tensor
    high: Tensor

    def latents(self, h: Tensor) -> Tensor:
        """h = basis @ x (..., inputs + affine) → what the expressions would read without clamping, float32 (..., inputs)"""
        return h[..., : self.inputs].float() + self.offset

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_model) → (..., d_model)"""
        h = F.linear(x, self.basis)
        z = self.latents(h)
        if self.clamp:
            z = torch.minimum(torch.maximum(z, self.low), self.high)
        y = self.program(z).to(x.dtype)  # (..., outputs)
        if self.affine:
            y = torch.cat([y, h[..., self.inputs :]], dim=-1)
        return self.get_submodule(self.outer)(y)

    @torch.no_grad()
    def clamped_fraction(self, x: Tensor) -> Tensor:
        """Share of each latent's values outside the calibrated range, x (..., d_model) → (inputs,)"""
        z = self.latents(F.linear(x, self.basis)).flatten(0, -2)
        return ((z < self.low) | (z > self.high)).float().mean(dim=0)
