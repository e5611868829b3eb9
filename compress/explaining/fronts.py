"""The expressions of a checkpoint: their Pareto fronts from the unit files, and choosing another one by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import methods
from compress.checkpoint.work import work_of
from compress.fitting import run
from compress.fitting.decide import artefact_of, decided
from compress.fitting.job import prepare, source_hash_of
from compress.fitting.picks import Choice
from compress.progress import Progress, silent
from compress.recipe import Recipe, load_recipe
from compress.regression.front import Candidate, Front, choose
from compress.stream.original import Original
from compress.symbolic.expression import to_latex, to_text


@dataclass(frozen=True)
class LayerExpressions:
    """The fronts of one layer, one per output, and the index of the candidate that is in the checkpoint."""

    layer: int
    fronts: tuple[Front, ...]
    chosen: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        outputs = [
            {"output": k, "chosen": index, "notes": list(front.notes), "candidates": [_row(c) for c in front.candidates]}
            for k, (front, index) in enumerate(zip(self.fronts, self.chosen, strict=True))
        ]
        return {"layer": self.layer, "outputs": outputs}

    def latex(self) -> str:
        """The chosen expressions as one LaTeX align block."""
        picked = [front.candidates[index] for front, index in zip(self.fronts, self.chosen, strict=True)]
        lines = [f"y_{{{k}}} &= {to_latex(c.tree, c.constants, _names(c))}" for k, c in enumerate(picked)]
        return "\\begin{align}\n" + " \\\\\n".join(lines) + "\n\\end{align}"


def expressions(folder: Path, layer: int | None = None, original: Original | None = None) -> list[LayerExpressions]:
    """The fronts of one layer or of all surrogates of a checkpoint. Raises ValueError where the layer has none.

    `original` is the compressed model where it is not the one that the recipe names.
    """
    job = prepare(_recipe(folder), work_of(folder), original)
    source_hash = source_hash_of(job)
    units = job.variants["compressed"]
    found = []
    for unit, method in zip(units, decided(job, units, source_hash), strict=True):
        artefact = artefact_of(job, unit, source_hash)
        if (of := method.expressions(artefact, unit.group.layer)) is not None:
            found.append(LayerExpressions(unit.group.layer, of.fronts, of.chosen))
    if not found:
        having = [name for name in methods.names() if methods.load(name).has_expressions]
        raise ValueError(f"{folder} has no expressions; methods with expressions are {' and '.join(having)}")
    if layer is None:
        return found
    return [_of_layer(found, layer)]


def pick(
    folder: Path, layer: int, output: int, complexity: int, progress: Progress = silent, original: Original | None = None
) -> Path:
    """Put the most accurate expression of at most `complexity` at one output, and write the checkpoint again.

    Nothing is fitted again: the choice goes into the folder's recipe and picks.json, and its unit files are taken over. A later
    fit keeps it, unless fresh. Raises ValueError where the layer, the output or the complexity is not there.
    """
    found = _of_layer(expressions(folder, original=original), layer)
    if not 0 <= output < len(found.fronts):
        raise ValueError(f"layer {layer} has outputs 0 to {len(found.fronts) - 1}; output {output} given")
    choose(found.fronts[output], complexity)
    return run.fit(_recipe(folder), progress=progress, original=original, picks=[Choice(layer, output, complexity)])


def _recipe(folder: Path) -> Recipe:
    if not (folder / "recipe.yaml").is_file():
        raise FileNotFoundError(f"{folder} has no recipe.yaml; give a folder that `compress fit` wrote")
    if not (work := work_of(folder)).is_dir():
        raise FileNotFoundError(f"{folder} has no unit files in {work}; the fronts are kept there: run fit again")
    return load_recipe(folder / "recipe.yaml").model_copy(update={"output": folder})


def _of_layer(found: Sequence[LayerExpressions], layer: int) -> LayerExpressions:
    for item in found:
        if item.layer == layer:
            return item
    raise ValueError(f"layer {layer} has no expressions; layers with expressions: {', '.join(str(e.layer) for e in found)}")


def _names(candidate: Candidate) -> list[str]:
    return [f"z_{{{i}}}" for i in range(_inputs(candidate.tree))]


def _inputs(tree: Any) -> int:
    """One more than the highest input a tree reads."""
    stack, most = [tree], 0
    while stack:
        node = stack.pop()
        if node[0] == "var":
            most = max(most, node[1] + 1)
        stack += [child for child in node[1:] if isinstance(child, list)]
    return most


def _row(candidate: Candidate) -> dict[str, Any]:
    inputs = _inputs(candidate.tree)
    return {
        "complexity": candidate.complexity,
        "r2_train": 1 - candidate.train_loss,
        "r2_held_out": None if candidate.held_out_loss is None else 1 - candidate.held_out_loss,
        "source": candidate.source,
        "text": to_text(candidate.tree, candidate.constants, [f"z{i}" for i in range(inputs)]),
        "latex": to_latex(candidate.tree, candidate.constants, _names(candidate)),
    }
