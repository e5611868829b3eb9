"""Finished replacements of a step's MLPs or attentions with what they cost, and MLP controls of as many multiply-adds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from compress import methods
from compress.architecture import Architecture
from compress.fitting.decide import first_pass_of
from compress.fitting.job import Job, prepare, source_hash_of
from compress.fitting.units import Unit
from compress.methods.base import Replacement
from compress.progress import Progress
from compress.recipe import Step, set_value
from compress.validation import explain


@dataclass(frozen=True)
class Candidate:
    """A layer's finished replacement and what it costs per token, before and after, in what its method `saves`."""

    unit: Unit
    replacement: Replacement
    before: int
    after: int
    size: Any = None  # the value that sets it apart from the other candidates of its layer; of a control, what it equals

    @property
    def layer(self) -> int:
        """The layer that it replaces a part of."""
        return self.unit.group.layer

    @property
    def saved(self) -> int:
        """Cost per token that goes, in what the method `saves`."""
        return self.before - self.after


def families(
    job: Job, tokens: Tensor, sizes: Mapping[str, Sequence[Any]], controls: bool, progress: Progress
) -> dict[str, list[Candidate]]:
    """By method, the candidates that save anything: those of the recipe's one step, then of its controls.

    `sizes` is empty, or one option of the step with its values: each gives a candidate for every layer. Fits what has no unit
    file yet. Raises ValueError for an option that is not there, and where the step saves nothing at any layer.
    """
    (step,) = job.recipe.steps
    # Without sizes, the step once, as it is.
    ((key, values),) = sizes.items() or (("", [None]),)
    steps = [(resized(step, key, value), value) for value in values]
    made = {step.method: _candidates(job, steps, tokens, progress)}
    own = made[step.method]
    for name in equal_cost_controls() if controls and step.options.replaces == "mlp" else ():
        steps = [
            (_control(name, candidate, job), candidate.size) for candidate in own if 0 < candidate.after < candidate.before
        ]
        if steps and name != step.method:
            made[name] = _candidates(job, steps, tokens, progress)
    useful = {name: [c for c in candidates if c.saved > 0] for name, candidates in made.items()}
    if not useful[step.method]:
        costs = ", ".join(f"layer {c.layer}: {c.after:,} for {c.before:,}" for c in own)
        raise ValueError(f"{step.method} saves no {step.options.saves} here ({costs}); make it smaller")
    return {name: candidates for name, candidates in useful.items() if candidates}


def resized(step: Step, key: str, value: Any) -> Step:
    """The step with one (dotted) option changed; itself where `key` is empty. Raises ValueError for what it does not allow."""
    if not key:
        return step
    data = step.to_yaml()
    set_value(data, f"{key}={json.dumps(value)}")
    try:
        return Step.model_validate(data)
    except ValidationError as error:
        raise ValueError("\n".join(explain(error, Step))) from None


def _candidates(job: Job, steps: Sequence[tuple[Step, Any]], tokens: Tensor, progress: Progress) -> list[Candidate]:
    """Of every layer of every step, given with its size; all fitted in one pass."""
    units: list[tuple[Unit, Any]] = []
    for step, size in steps:
        # A recipe for this step alone: in one recipe several sizes would replace the same modules.
        alone = prepare(job.recipe.model_copy(update={"steps": [step]}), job.work, job.original)
        units += [(unit, size) for unit in alone.variants["compressed"]]
    first_pass = first_pass_of(job, source_hash_of(job, tokens))
    # By layer, since the pass goes through the model once.
    ordered = sorted((unit for unit, _ in units), key=lambda unit: unit.group.layer)
    # Units of one fingerprint are one fit, and one file.
    first_pass.run(list({unit.fingerprint(""): unit for unit in ordered}.values()), tokens, progress)
    shapes = {job.model.full_name(name): shape for name, shape in job.model.shards.shapes.items()}
    out = []
    for unit, size in units:
        artefact = first_pass.artefact(unit)
        assert artefact is not None
        made = unit.method.replace(unit.group, artefact, job.model.architecture)
        out.append(Candidate(unit, made, *unit.method.layer_cost(made, unit.group.layer, shapes, job.model.architecture), size))
    return out


def equal_cost_controls() -> list[str]:
    """The methods that stand for an MLP at any cost."""
    return [name for name in methods.names() if methods.load(name).equal_cost]


def _control(name: str, candidate: Candidate, job: Job) -> Step:
    """A control on the candidate's layer that costs at least as much."""
    architecture = job.model.architecture
    d_model, d_ff = _sides(job, architecture, candidate.layer)
    options = methods.load(name).at_cost(candidate.after, d_model, d_ff, architecture)
    return Step.model_validate({"method": name, "layers": [candidate.layer], **options})


def _sides(job: Job, architecture: Architecture, layer: int) -> tuple[int, int]:
    """(d_model, d_ff) of a layer's MLP."""
    rows, columns = _shape(job, architecture.module(layer, "down"))
    # GPT-2's Conv1D stores weights as (in, out).
    return (columns, rows) if architecture.conv1d else (rows, columns)


def _shape(job: Job, linear: str) -> tuple[int, ...]:
    return job.model.shards.shapes[job.model.stored_name(f"{linear}.weight")]
