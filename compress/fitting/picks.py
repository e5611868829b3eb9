"""Expressions that were picked by hand: kept in the checkpoint, so that a later fit of the same units keeps them too."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from compress.checkpoint.files import read_json
from compress.fitting.job import Job, prepare
from compress.fitting.units import Unit
from compress.recipe import Step
from compress.validation import checked

FILE = "picks.json"


class Choice(NamedTuple):
    """The most accurate expression of at most `complexity` is to be at one output of a layer's surrogate."""

    layer: int
    output: int
    complexity: int


class Pick(BaseModel):
    """A choice, and the fingerprint of the unit whose front it was made from: another front has other expressions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: str
    layer: int
    output: int
    complexity: int


def with_picks(job: Job, source_hash: str, new: Sequence[Choice], fresh: bool = False) -> tuple[Job, list[Pick]]:
    """The job with what was picked for its units, earlier (not where `fresh`) and now; and all of that, for the checkpoint.

    An earlier pick that is kept, or whose unit is another now, is a warning.
    """
    earlier = [] if fresh else _read(job.recipe.output)
    kept = [pick for pick in earlier if (unit := _unit(job, pick.layer)) and unit.fingerprint(source_hash) == pick.unit]
    if not new:
        _tell(earlier, kept)
    picks = {(pick.layer, pick.output): pick for pick in kept}
    for layer, output, complexity in new:
        if (unit := _unit(job, layer)) is not None:
            fingerprint = unit.fingerprint(source_hash)
            picks[layer, output] = Pick(unit=fingerprint, layer=layer, output=output, complexity=complexity)
    if not picks:
        return job, []
    steps = list(job.recipe.steps)
    for pick in picks.values():
        if (unit := _unit(job, pick.layer)) is not None:
            steps[unit.group.step] = picked(steps[unit.group.step], pick.layer, pick.output, pick.complexity)
    return prepare(job.recipe.model_copy(update={"steps": steps}), job.work, job.original), list(picks.values())


def picked(step: Step, layer: int, output: int, complexity: int) -> Step:
    """A step with one choice more. Through the YAML form, so that only what was set is written back."""
    return Step.model_validate({**step.to_yaml(), **step.options.picked(layer, output, complexity)})


def with_simplest(job: Job, at: int, simplest: Mapping[int, int]) -> Job:
    """The job with the simplest expressions in the unit at that place, and a recipe that says so: `pick` and `show` read it."""
    unit, steps, units = job.variants["compressed"][at], list(job.recipe.steps), list(job.variants["compressed"])
    step = unit.step
    for output, complexity in simplest.items():
        step = picked(step, unit.group.layer, output, complexity)
        steps[unit.group.step] = picked(steps[unit.group.step], unit.group.layer, output, complexity)
    units[at] = replace(unit, step=step)
    recipe = job.recipe.model_copy(update={"steps": steps})
    return replace(job, recipe=recipe, variants={**job.variants, "compressed": units})


def _read(folder: Path) -> list[Pick]:
    rows = read_json(folder / FILE)
    return [checked(Pick, row) for row in rows] if isinstance(rows, list) else []


def _unit(job: Job, layer: int) -> Unit | None:
    units = job.variants["compressed"]
    return next((unit for unit in units if unit.group.layer == layer and unit.method.has_expressions), None)


def _tell(earlier: Sequence[Pick], kept: Sequence[Pick]) -> None:
    for pick in earlier:
        what = f"layer {pick.layer}, output {pick.output}: the expression that was picked by hand"
        how = "is kept; --fresh forgets it" if pick in kept else "is forgotten: the surrogate is another one now"
        warnings.warn(f"{what} {how}", stacklevel=4)
