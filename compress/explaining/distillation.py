"""Symbolic distillation of anything that maps rows to rows: a module, an attention head's output, a user's own callable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor, nn

from compress.nn.symbolic import ExpressionProgram
from compress.regression.front import Candidate, Front, Rule, choose
from compress.regression.options import EngineOptions
from compress.regression.regress import regress_each
from compress.symbolic.compile import compile_program, program_to_json
from compress.symbolic.expression import join, symbols, to_latex, to_text


@dataclass(frozen=True)
class Distilled:
    """One front per output over inputs x0, x1, …, and the candidate chosen of each."""

    inputs: int
    fronts: tuple[Front, ...]
    chosen: tuple[int, ...]

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return tuple(front.candidates[index] for front, index in zip(self.fronts, self.chosen, strict=True))

    def pick(self, output: int, rule: Rule) -> Distilled:
        """The same with another choice at one output: held_out, knee, or the most accurate of at most that complexity."""
        index = choose(self.fronts[output], rule)
        return Distilled(self.inputs, self.fronts, (*self.chosen[:output], index, *self.chosen[output + 1 :]))

    def sympy(self) -> list[sympy.Expr]:
        """The chosen expressions, unevaluated, constants as they are."""
        return [c.expression(symbols(self.inputs, "x")) for c in self.candidates]

    def text(self) -> list[str]:
        return [to_text(c.tree, c.constants, [f"x{i}" for i in range(self.inputs)]) for c in self.candidates]

    def latex(self) -> list[str]:
        return [to_latex(c.tree, c.constants, [f"x_{{{i}}}" for i in range(self.inputs)]) for c in self.candidates]

    def module(self) -> nn.Module:
        """A torch module x (..., inputs) float32 → (..., outputs); its `constants` are parameters, free to be trained."""
        trees, constants = join([(c.tree, c.constants) for c in self.candidates])
        program = ExpressionProgram(program_to_json(compile_program(trees, self.inputs, len(constants))))
        program.load_state_dict({"constants": torch.tensor(constants, dtype=torch.float32)})
        return program


def distill(
    module: Callable[[Tensor], Tensor],
    inputs: Tensor | Sequence[Tensor],
    engine: EngineOptions | None = None,
    *,
    rule: Rule = "held_out",
    seed: int = 0,
) -> Distilled:
    """Expressions for every output of a module, or of any function from rows to rows, over given inputs.

    Args:
        module: called once, in eval mode and without gradients, on the inputs as they are given.
        inputs: (..., d), flattened to rows, the last fifth of them held out; a sequence of tensors is concatenated after that.
        engine: what searches, and how long.
        rule: "held_out", "knee", or the most accurate expression of at most this complexity.
        seed: of the search.

    Returns a front per output and the expression chosen of each; `.text()`, `.latex()`, `.sympy()` and `.module()` show them.

    Raises ValueError where the output has not one row per input row, and as `compress.regression.regress.regress` does.

    >>> import compress, torch
    >>> from compress.regression.options import EngineOptions
    >>> x = torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> found = compress.distill(lambda x: x[:, :1] * x[:, 1:2], x, EngineOptions(name="sparse"))
    >>> found.text()
    ['1.0*x0*x1']
    """
    parts = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    training = isinstance(module, nn.Module) and module.training
    if isinstance(module, nn.Module):
        module.eval()
    try:
        with torch.no_grad():
            outputs = [module(part) for part in parts]
    finally:
        if isinstance(module, nn.Module):
            module.train(training)
    for given, output in zip(parts, outputs, strict=True):
        if not isinstance(output, Tensor) or output.shape[:-1] != given.shape[:-1]:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"the module gives {found} for inputs {tuple(given.shape)}; it must give (…, outputs) with the same leading "
                "sizes: wrap it in a function that returns such a tensor"
            )
    x, y = (torch.cat([t.reshape(-1, t.shape[-1]) for t in ts]).double().cpu().numpy() for ts in (parts, outputs))
    fronts = tuple(regress_each(x, y, engine or EngineOptions(), seed))
    return Distilled(x.shape[1], fronts, tuple(choose(front, rule) for front in fronts))
