"""What a module does around one token, as a small expression: a local explanation (SLIME of SymTorch, after LIME).

    text ──model──► the module's input x at every token ──neighbours of x at one position──► outputs ──regression──► expression

Neighbours move as the text's own activations vary, x' = x + width·r·A u with A Aᵀ their covariance, and are kept with
probability exp(−d²/2), d² the mean square of r·u: a distance that does not grow with the number of dimensions, as SLIME's
does. The expression reads the directions along which the module's gradient is largest there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from compress import data
from compress.beginning import BOS, Bos, tokenize
from compress.explaining.distillation import Distilled
from compress.explaining.token_function import TokenFunction
from compress.numerics.conventions import signed
from compress.numerics.lapack import least_squares, pseudo_inverse, right_singular
from compress.numerics.linalg import largest_first
from compress.regression.front import Rule, choose
from compress.regression.options import HELD_OUT, EngineOptions
from compress.regression.regress import regress_each

FARTHEST = 2.0  # r of the farthest neighbours: their weight is e⁻² of the nearest's
TERMS, EVALUATIONS = 8, 20_000  # of the search: what explains is short
SHOWN = 3  # tokens that stand for each end of a direction


class ExplainOptions(BaseModel):
    """How many neighbours, how near, and how much the expression may read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: PositiveInt = Field(4, description="directions of the module's input that the expression reads")
    outputs: PositiveInt = Field(1, description="directions of its output, one expression each, largest local change first")
    neighbours: Annotated[int, Field(ge=50)] = Field(2000, description="sampled around the token; the last fifth is held out")
    width: Annotated[float, Field(gt=0)] = Field(0.5, description="of the neighbourhood, as a share of the text's own spread")
    engine: EngineOptions = Field(default_factory=lambda: EngineOptions(name="sparse", terms=TERMS))
    choose: Rule = Field("knee", description="held_out, knee, or the most accurate of at most this complexity")
    bos: Bos = Field("auto", description=f"what stands in front of the text, without a position ({BOS})")
    seed: int = 0


@dataclass(frozen=True)
class Explanation:
    """Expressions of x0, x1, … for the change of the module's output along each output direction, 0 at the token itself.

    x0, x1, … are the input's changes along `directions` (inputs, d), of unit variance over the neighbours; `output_directions`
    (outputs, e) are orthonormal. `r2` is of the chosen expression on neighbours held out, `linear_r2` of least squares through
    the same directions.
    """

    module: str
    token: str
    position: int
    distilled: Distilled
    directions: Tensor
    output_directions: Tensor
    explained: tuple[float, ...]  # share of the module's local output variance along each output direction
    r2: tuple[float, ...]
    linear_r2: tuple[float, ...]
    ends: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]  # tokens of the text highest and lowest on each direction

    def latex(self) -> str:
        """The expressions as one LaTeX align block."""
        lines = [f"y_{{{k}}} &= {formula}" for k, formula in enumerate(self.distilled.latex())]
        return "\\begin{align}\n" + " \\\\\n".join(lines) + "\n\\end{align}"

    def text(self) -> str:
        """What the command prints."""
        lines = [f"{self.module} at token {self.position}, {self.token!r}: change of its output, 0 at the token itself", ""]
        for k, formula in enumerate(self.distilled.text()):
            lines.append(f"y{k} = {formula}")
            about = f"local R² {self.r2[k]:.3f} held out (linear {self.linear_r2[k]:.3f})"
            lines.append(f"     {about}; {self.explained[k]:.0%} of the output's local variance")
        lines.append("")
        read = set(re.findall(r"\bx(\d+)\b", " ".join(self.distilled.text())))
        for i, (high, low) in enumerate(self.ends):
            if str(i) not in read:
                continue
            lines.append(f"x{i}: high at {', '.join(map(repr, high))}; low at {', '.join(map(repr, low))}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        formulas = zip(self.distilled.text(), self.distilled.latex(), self.distilled.candidates, strict=True)
        numbers = zip(self.explained, self.r2, self.linear_r2, strict=True)
        return {
            "module": self.module,
            "token": self.token,
            "position": self.position,
            "outputs": [
                {
                    "text": text,
                    "latex": latex,
                    "complexity": candidate.complexity,
                    "share_of_output_variance": share,
                    "r2": r2,
                    "linear_r2": linear,
                    "direction": direction.tolist(),
                }
                for (text, latex, candidate), (share, r2, linear), direction in zip(
                    formulas, numbers, self.output_directions, strict=True
                )
            ],
            "inputs": [
                {"name": f"x{i}", "high": list(high), "low": list(low), "direction": self.directions[i].tolist()}
                for i, (high, low) in enumerate(self.ends)
            ],
        }


def explain_token(
    model: Any, tokenizer: Any, module: str, text: str, position: int = -1, options: ExplainOptions | None = None
) -> Explanation:
    """Explain a module of a causal language model at one token of a text; deterministic under `options.seed`.

    Other tokens stay as they are, so an attention is explained as a function of this token alone. Raises ValueError for a
    module that is not there or maps no activations to activations, a position outside the text, text too short to say how
    activations vary, and text that the model has no positions or embeddings for.
    """
    options = options or ExplainOptions.model_validate({})
    front, ids = tokenize(tokenizer, text, options.bos)
    if not ids:
        raise ValueError("text: it gives no token; give two dozen or more")
    read: Any = torch.tensor([front + ids], dtype=torch.long)
    most = data.positions(model.config)
    if most is not None and read.shape[1] > most:
        raise ValueError(f"text: {read.shape[1]} tokens given, and the model has {most} positions; give shorter text")
    data.check_tokens(read, model.config, tokenizer, "text")
    at = TokenFunction(model, module, read, position, len(front))
    inputs, position = at.inputs.double(), at.position
    generator = torch.Generator().manual_seed(options.seed)
    axes = _axes(inputs, options.inputs)
    steps = _steps(options, axes.shape[1], generator)  # (n, m) in units of the axes
    rows = inputs[position] + steps @ axes.T
    outputs, origin = at(rows), at(inputs[position : position + 1])
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError(f"{module} gives values that are not finite around this token; give a smaller width")
    out_directions, shares = _principal(outputs - outputs.mean(dim=0), options.outputs)
    targets = (outputs - origin) @ out_directions.T
    gradients = at.gradients(rows, out_directions) @ axes  # (n, outputs, m)
    chosen = _leading(gradients.flatten(0, 1), options.inputs)  # (inputs, m)
    scale = (steps @ chosen.T).std(dim=0, correction=0)
    z = steps @ chosen.T / scale
    fronts = tuple(regress_each(z.numpy(), targets.numpy(), options.engine, options.seed))
    picked = tuple(choose(front, options.choose) for front in fronts)
    distilled = Distilled(options.inputs, fronts, picked)
    directions = chosen / scale[:, None] @ pseudo_inverse(axes)
    words = [tokenizer.decode([i]) for i in ids]
    return Explanation(
        module=module,
        token=words[position],
        position=position,
        distilled=distilled,
        directions=directions,
        output_directions=out_directions,
        explained=tuple(shares),
        r2=tuple(1 - float(c.held_out_loss or 0.0) for c in distilled.candidates),
        linear_r2=tuple(_linear_r2(z.numpy(), targets.numpy())),
        ends=tuple(_ends(row, words) for row in (inputs @ directions.T).T),
    )


def _axes(rows: Tensor, wanted: int) -> Tensor:
    """A (d, m) with A Aᵀ the covariance of rows (n, d), over the m directions in which they vary."""
    centred = rows - rows.mean(dim=0)
    sizes, vectors = right_singular(centred)
    moving = int((sizes > 1e-6 * sizes[0]).sum()) if float(sizes[0]) > 0 else 0
    if moving < wanted:
        raise ValueError(
            f"inputs: {wanted} given, but over {len(rows)} tokens the module's inputs vary in {moving} directions; "
            "give longer text or fewer inputs"
        )
    return vectors[:moving].T * (sizes[:moving] / len(rows) ** 0.5)


def _steps(options: ExplainOptions, axes: int, generator: torch.Generator) -> Tensor:
    """Weighted neighbours (neighbours, axes), in units of the axes: drawn at all distances, kept by their weight."""
    kept: list[Tensor] = []
    while sum(map(len, kept)) < options.neighbours:
        radius = FARTHEST * torch.rand(options.neighbours, 1, generator=generator, dtype=torch.float64)
        step = radius * torch.randn(options.neighbours, axes, generator=generator, dtype=torch.float64)
        weight = torch.exp(-step.square().mean(dim=1) / 2)
        kept.append(step[torch.rand(len(step), generator=generator, dtype=torch.float64) < weight])
    return options.width * torch.cat(kept)[: options.neighbours]


def _principal(centred: Tensor, count: int) -> tuple[Tensor, list[float]]:
    """(leading principal directions of rows (n, e) as rows, the share of variance along each)."""
    sizes, vectors = right_singular(centred)
    if float(sizes[0]) == 0:
        raise ValueError("the module's output does not change around this token; there is nothing to explain")
    count = min(count, len(sizes))
    return signed(vectors[:count], dim=1), (sizes[:count].square() / sizes.square().sum()).tolist()


def _leading(rows: Tensor, count: int) -> Tensor:
    """Orthonormal directions of the largest mean square of rows (n, m), (count, m)."""
    return signed(largest_first(rows.T @ rows)[0][:, :count].T, dim=1)


def _linear_r2(z: np.ndarray, y: np.ndarray) -> list[float]:
    """Held-out R² of least squares through the same inputs: what a plain linear explanation reaches."""
    cut = len(z) - int(len(z) * HELD_OUT)
    design = np.column_stack([np.ones(len(z)), z])
    weights = least_squares(design[:cut], y[:cut])
    return (1 - ((y[cut:] - design[cut:] @ weights) ** 2).mean(axis=0) / y[cut:].var(axis=0).clip(1e-300)).tolist()


def _ends(values: Tensor, words: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words of the highest and the lowest values, each once."""
    order = [words[i] for i in values.argsort(descending=True).tolist()]
    return tuple(dict.fromkeys(order))[:SHOWN], tuple(dict.fromkeys(reversed(order)))[:SHOWN]
