"""What each finished unit becomes: ranks that share a budget, replacements, what stays dense."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

import torch

from compress.checkpoint.files import hash_json
from compress.checkpoint.units import Artefact, Spilled, write_unit
from compress.fitting.assemble import storage_dtype, stored_tensors
from compress.fitting.calibrate import FirstPass
from compress.fitting.job import Job
from compress.fitting.keep_dense import judge
from compress.fitting.units import Unit, together
from compress.methods.base import Method, Replacement
from compress.parallel.world import world
from compress.plan import ModuleSpec


def first_pass_of(job: Job, source_hash: str) -> FirstPass:
    """The first pass of a job, for these inputs."""
    return FirstPass(job.model, job.work, source_hash, job.recipe.seed, job.second_pass)


def decided(job: Job, units: Sequence[Unit], source_hash: str) -> list[Method]:
    """Each finished unit's method, with ranks that share a budget chosen together; reads spectra, not factors."""
    # Factors of all units together would be as large as the model.
    return together(units, [artefact_of(job, unit, source_hash, only=("spectrum",)) for unit in units])


def artefact_of(job: Job, unit: Unit, source_hash: str, only: Container[str] | None = None) -> Artefact:
    """A finished unit's file, or `only` some of its tensors. Raises FileNotFoundError where it is missing or damaged."""
    artefact = first_pass_of(job, source_hash).artefact(unit, only)
    if artefact is None:
        raise FileNotFoundError(f"{unit.file(job.work, source_hash)} is missing or damaged; run fit again")
    return artefact


def replacements_of(job: Job, units: Sequence[Unit], source_hash: str) -> list[Replacement]:
    """What each finished unit becomes; with `keep_dense_if_slower`, nothing where it would be slower."""
    return [
        _replacement(job, unit, method, source_hash)
        for unit, method in zip(units, decided(job, units, source_hash), strict=True)
    ]


def _replacement(job: Job, unit: Unit, method: Method, source_hash: str) -> Replacement:
    made = method.replace(unit.group, artefact_of(job, unit, source_hash), job.model.architecture)
    if not job.recipe.keep_dense_if_slower:
        return made
    # `true` means the CPU, in float32 as everything on it is computed; another device runs the stored dtype.
    device = "cpu" if job.recipe.keep_dense_if_slower is True else job.recipe.keep_dense_if_slower
    dtype = torch.float32 if device == "cpu" else storage_dtype(job.model)
    return judge([made], job.work / "speed.json", device, dtype)[0]


def replace_on_disk(job: Job, units: Sequence[Unit], source_hash: str) -> list[Replacement]:
    """As `replacements_of`, one unit in memory at a time: the tensors wait in files, in the dtype they will be stored in."""
    methods = decided(job, units, source_hash)

    def file(at: int) -> Path:
        # By the decision, too: one unit file gives other tensors at another rank.
        decision = hash_json(methods[at].model_dump(mode="json"))[:12]
        return job.work / "replaced" / f"{units[at].file(job.work, source_hash).stem}.{decision}.safetensors"

    # What is timed is timed by one process.
    share = world().share if not job.recipe.keep_dense_if_slower else world().first_alone
    for at in share(len(units)):
        made = _replacement(job, units[at], methods[at], source_hash)
        specs = [spec.model_dump(mode="json") for spec in made.specs]
        said = {"specs": specs, "removed": made.removed, "report": made.report}
        write_unit(file(at), Artefact(dict(stored_tensors(job.model, made)), said), source_hash)
    return [_from_disk(Spilled(file(at))) for at in range(len(units))]


def _from_disk(tensors: Spilled) -> Replacement:
    said = tensors.metadata
    specs = tuple(ModuleSpec.model_validate(spec) for spec in said["specs"])
    return Replacement(specs, tensors, tuple(said["removed"]), tuple(said["report"]))
