"""MLP replacement by closed-form expressions. Torch only: the standalone exporter inlines these classes' source."""
# Tensor.split and what follows it have no types in torch; the classes are copied, so the note is here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ExpressionProgram(nn.Module):
    """y_o = expression_o(z; constants) for a program given as JSON (`compress.symbolic.compile.program_to_json`).

    "steps" is the program batched (`compress.symbolic.schedule`): z and all later results are columns of one growing matrix; a
    step gathers columns and calls one torch function on them, or sums them by a matrix product. Programs with conditions have
    no steps; theirs are the "instructions", each a torch function and the registers it reads.
    """

    def __init__(self, program: dict[str, Any]) -> None:
        super().__init__()
        self.inputs: int = program["inputs"]
        self.literals = [float("nan") if value is None else float(value) for value in program["literals"]]
        self.instructions = [(name, tuple(args)) for name, args in program["instructions"]]
        self.outputs = tuple(program["outputs"])
        self.steps = program["steps"]
        self._indices: dict[str, Any] = {}  # device → the steps' indices as tensors; made in forward, never stored
        # float32 by name: a checkpoint loaded in bfloat16 keeps it
        self.constants = nn.Parameter(torch.zeros(program["constants"], dtype=torch.float32))

    def forward(self, z: Tensor) -> Tensor:
        """z (..., inputs) float32 → (..., outputs)"""
        if self.steps is None:
            return self.straight(z)
        numbers, levels, final = self.indices(z.device)
        fixed = torch.cat([self.constants, numbers])  # what no input changes
        for name, args in self.steps["scalars"]:
            fixed = torch.cat([fixed, getattr(torch, name)(*[fixed[a] for a in args]).reshape(1)])
        columns = z
        for level in levels:
            new = torch.cat([self.step(name, args, columns, fixed) for name, args in level], dim=-1)
            largest = torch.finfo(new.dtype).max  # an infinity times zero would be NaN in the next product
            columns = torch.cat([columns, new.clamp(-largest, largest)], dim=-1)
        return self.linear(columns, fixed, *final)

    def step(self, name: str, args: list[Any], columns: Tensor, fixed: Tensor) -> Tensor:
        """One operation on columns (..., n) → (..., members)"""
        if name == "linear":
            return self.linear(columns, fixed, *args)
        read = [columns.index_select(-1, i) if kind == "column" else fixed.index_select(0, i) for kind, i in args]
        return getattr(torch, name)(*read)

    def linear(self, columns: Tensor, fixed: Tensor, rows: int, weight: list[Tensor], bias: list[Tensor]) -> Tensor:
        """columns (..., n) → (..., rows): row r is Σ sign · fixed[f] · column[c] over its terms, plus its fixed terms"""
        row, column, sign, which = weight
        matrix = fixed.new_zeros(rows, columns.shape[-1]).index_put((row, column), sign * fixed[which], accumulate=True)
        row, sign, which = bias
        return F.linear(columns, matrix, fixed.new_zeros(rows).index_put((row,), sign * fixed[which], accumulate=True))

    def straight(self, z: Tensor) -> Tensor:
        """The same, one instruction at a time: registers are the inputs, the constants, the literals, then every result."""
        first = z.split(1, dim=-1)  # (..., 1) each
        registers = [*first, *self.constants.unbind(), *(z.new_full((), value) for value in self.literals)]
        for name, args in self.instructions:
            registers.append(getattr(torch, name)(*[registers[a] for a in args]))
        # an expression without a variable is a scalar until here
        return torch.cat([registers[o].expand_as(first[0]) for o in self.outputs], dim=-1)

    def indices(self, device: torch.device) -> Any:
        """(1 and the literals, levels, final) with every list of indices as a tensor on `device`; kept except while tracing."""
        if torch.compiler.is_compiling():
            return self.make_indices(device)
        if str(device) not in self._indices:
            with torch.inference_mode(False):  # else a first call in inference mode would bar later training
                self._indices[str(device)] = self.make_indices(device)
        return self._indices[str(device)]

    def make_indices(self, device: torch.device) -> Any:
        def tensor(values: list[Any], dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        def terms(linear: dict[str, Any]) -> list[Any]:
            (*at, sign, which), (row, bias_sign, bias_which) = linear["weight"], linear["bias"]
            weight = [*map(tensor, at), tensor(sign, torch.float32), tensor(which)]
            return [linear["rows"], weight, [tensor(row), tensor(bias_sign, torch.float32), tensor(bias_which)]]

        levels = [
            [(s["op"], terms(s) if s["op"] == "linear" else [(kind, tensor(i)) for kind, i in s["args"]]) for s in level]
            for level in self.steps["levels"]
        ]
        return tensor([1.0, *self.literals], torch.float32), levels, terms(self.steps["final"])


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
        self.outer_name, self.inputs, self.affine, self.clamp = outer, inputs, affine, clamp
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
        return self.get_submodule(self.outer_name)(y)

    @torch.no_grad()
    def clamped_fraction(self, x: Tensor) -> Tensor:
        """Share of each latent's values outside the calibrated range, x (..., d_model) → (inputs,)"""
        z = self.latents(F.linear(x, self.basis)).flatten(0, -2)
        return ((z < self.low) | (z > self.high)).float().mean(dim=0)
