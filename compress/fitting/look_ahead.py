"""What could fail after an hour, looked at first, and by --dry-run: texts, tokens, windows, output, disk, memory.

Reads no weight. Estimates err on the small side: what they refuse could not have worked.
"""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from torch import Tensor

from compress import data
from compress.fitting.job import Job, expected_peak_bytes, tokens_of

_SPARE = 1.1  # of disk: reports, tokenizer, shards that are being written


# Windows that levers are judged on.
WINDOWS = 16  # at most
TOKENS = 8192  # at most, but never fewer than LEAST windows
LEAST = 4


@dataclass(frozen=True)
class Texts:
    """Windows of tokens, (sequences, length) each, that the model has positions and embeddings for.

    Levers are judged on `acceptance`: others of the calibration text (`held_out`), or some of its own where it has no others.
    """

    calibration: Tensor
    acceptance: Tensor
    held_out: bool
    evaluation: Mapping[str, Tensor]


def look_ahead(job: Job) -> Texts:
    """Everything that a fit needs beside the weights. Raises ValueError or FileNotFoundError, one line for what is missing.

    Memory that is there but taken by other programs is a warning.
    """
    _room_for_output(job)
    _room_in_memory(job)
    evaluation = job.recipe.evaluation
    # Lengths first: they are known without reading a text.
    for name in evaluation.texts:
        data.check_length(evaluation.source(name).length, job.model.config, f"evaluation text {name!r}")
    calibration, source = tokens_of(job), job.recipe.calibration
    tokenizer = job.original.tokenizer()
    most = max(LEAST, min(WINDOWS, TOKENS // source.length))
    unseen = data.unseen_tokens(source, tokenizer, most)
    held_out = len(unseen) >= LEAST
    if held_out:
        data.check_tokens(unseen, job.model.config, tokenizer, "calibration")
    read = {name: data.evaluation_tokens(evaluation.source(name), tokenizer) for name in evaluation.texts}
    for name, tokens in read.items():
        data.check_tokens(tokens, job.model.config, tokenizer, f"evaluation text {name!r}")
    return Texts(calibration, unseen if held_out else calibration[-most:], held_out, read)


def _room_for_output(job: Job) -> None:
    """Raises ValueError where the output cannot be written, or its disk is too small."""
    needed = expected_disk_bytes(job)
    for folder in dict.fromkeys((job.recipe.output, job.work)):
        ancestor = existing(folder)
        if not ancestor.is_dir():
            raise ValueError(f"output: {str(folder)!r} is to be a folder, and {str(ancestor)!r} is a file; give another path")
        if not os.access(ancestor, os.W_OK | os.X_OK):
            raise ValueError(f"output: {str(ancestor)!r} cannot be written to; give another folder, or change its permissions")
    there = sum(_sizes(job.work))  # not the output: the new state stands beside the old one until it is whole
    free = shutil.disk_usage(existing(job.recipe.output)).free
    if needed - there > free:
        raise ValueError(
            f"output: {str(job.recipe.output)!r} needs about {_gib(needed - there)}, and its disk has {_gib(free)} left; free "
            "some, or give another folder"
        )


def expected_disk_bytes(job: Job) -> int:
    """Estimate of what a fit writes: the checkpoint at most as large as the original, and a float32 copy of what it targets."""
    shards = job.model.shards
    targeted = {name for unit in job.units for module in unit.group.modules for name in _parameters(job, module)}
    numbers = sum(math.prod(shards.shapes[name]) for name in targeted)
    return int(_SPARE * (sum(shards.bytes(name) for name in shards) + 4 * numbers))


def _parameters(job: Job, module: str) -> Iterator[str]:
    """Stored names of a targeted module's own weight; of whole MLPs and attentions the artefacts are small."""
    name = job.model.stored_name(f"{module}.weight")
    if name in job.model.shards.shapes:
        yield name


def _room_in_memory(job: Job) -> None:
    needed, memory = expected_peak_bytes(job), psutil.virtual_memory()
    if needed > memory.total:
        raise ValueError(
            f"memory: about {_gib(needed)} are needed, and this machine has {_gib(memory.total)}; lower calibration.sequences, "
            "calibration.length or evaluation, or take a larger machine"
        )
    if needed > memory.available:
        warnings.warn(f"memory: about {_gib(needed)} are needed, {_gib(memory.available)} are free", stacklevel=2)


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = path.expanduser().absolute()
    return next(part for part in (path, *path.parents) if part.exists() or part.is_symlink())


def _sizes(folder: Path) -> Iterator[int]:
    yield from (file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
