"""Finished replacements of a step's MLPs with what they cost, and the same layers by controls of as many multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compress import run
from compress.architecture import Architecture
from compress.equal_cost import equal_channels, equal_rank
from compress.methods.base import Replacement
from compress.recipe import Step
from compress.run import Job, Progress
from compress.units import Unit, units_of

CONTROLS = ("affine_mlp", "prune_channels")


@dataclass(frozen=True)
class Candidate:
    """One MLP's finished replacement and its multiply-adds per token, before and after."""

    unit: Unit
    replacement: Replacement
    before: int
    after: int

    @property
    def layer(self) -> int:
        return self.unit.group.layer

    @property
    def saved(self) -> int:
        return self.before - self.after


def families(job: Job, tokens: Tensor, controls: bool, progress: Progress) -> dict[str, list[Candidate]]:
    """By method, the candidates that save anything: those of the recipe's one step, then of its controls.

    Fits what has no unit file yet. Raises ValueError where the step saves nothing at any layer.
    """
    (step,) = job.recipe.steps
    made = {step.method: _candidates(job, job.variants["compressed"], tokens, progress)}
    own = made[step.method]
    for name in CONTROLS if controls else ():
        steps = [_control(name, candidate, job) for candidate in own if 0 < candidate.after < candidate.before]
        if steps and name != step.method:
            recipe = job.recipe.model_copy(update={"steps": steps})
            made[name] = _candidates(job, units_of(recipe, job.model.architecture, job.model.n_layers), tokens, progress)
    useful = {name: [c for c in candidates if c.saved > 0] for name, candidates in made.items()}
    if not useful[step.method]:
        costs = ", ".join(f"layer {c.layer}: {c.after:,} for {c.before:,}" for c in own)
        raise ValueError(f"{step.method} saves no multiply-adds here ({costs}); make it smaller")
    return {name: candidates for name, candidates in useful.items() if candidates}


def _candidates(job: Job, units: list[Unit], tokens: Tensor, progress: Progress) -> list[Candidate]:
    first_pass = run.first_pass(job, run.material_of(job, tokens))
    first_pass.run(units, tokens, progress)
    out = []
    for unit in units:
        artefact = first_pass.artefact(unit)
        assert artefact is not None
        made = unit.method.replace(unit.group, artefact, job.model.architecture)
        before = _mlp_multiply_adds(job, unit.group.layer)
        # No specs: pruning that keeps every channel leaves the MLP as it is.
        after = before if not made.specs else sum(_entries(tuple(t.shape)) for t in made.tensors.values())
        out.append(Candidate(unit, made, before, after + sum(row.get("operations", 0) for row in made.report)))
    return out


def _control(name: str, candidate: Candidate, job: Job) -> Step:
    """A control on the candidate's layer that costs at least as much."""
    architecture, layer, cost = job.model.architecture, candidate.layer, candidate.after
    d_model, d_ff = _sides(job, architecture, layer)
    if name == "affine_mlp":
        return Step.model_validate({"method": name, "layers": [layer], "rank": equal_rank(cost, d_model)})
    channels = min(d_ff, equal_channels(cost, d_model, architecture))
    return Step.model_validate({"method": name, "layers": [layer], "channels": channels, "importance": "fisher"})


def _sides(job: Job, architecture: Architecture, layer: int) -> tuple[int, int]:
    """(d_model, d_ff) of a layer's MLP."""
    rows, columns = _shape(job, architecture.module(layer, "down"))
    return (columns, rows) if architecture.conv1d else (rows, columns)


def _mlp_multiply_adds(job: Job, layer: int) -> int:
    architecture = job.model.architecture
    return sum(_entries(_shape(job, architecture.module(layer, role))) for role in architecture.mlp_roles)


def _shape(job: Job, linear: str) -> tuple[int, ...]:
    return job.model.shards.shapes[job.model.stored_name(f"{linear}.weight")]


def _entries(shape: tuple[int, ...]) -> int:
    """Multiply-adds of a matrix; vectors are added, not multiplied."""
    return shape[0] * shape[1] if len(shape) == 2 else 0
