"""Several processes on one fit: that they have the same model, recipe and versions, and one work folder."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import torch
import transformers

from compress.checkpoint.files import hash_json, read_json, write_json
from compress.fitting.job import Job
from compress.parallel.world import world
from compress.version import __version__

FILE = "processes.json"  # in the work folder
PATIENCE = 30.0  # seconds that a file may take from one host to another


def check_alike(job: Job, source_hash: str) -> None:
    """Raises ValueError that names what a process has otherwise than the first."""
    mine = {
        "the model's weights": job.model.shards.fingerprint(),
        "the recipe": hash_json(job.recipe.model_dump(mode="json", exclude={"model"})),
        "the calibration tokens": source_hash,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "compress": __version__,
    }
    first, *others = world().everyone(mine)
    for rank, theirs in enumerate(others, start=1):
        for what, value in theirs.items():
            if value != first[what]:
                raise ValueError(f"rank {rank} has otherwise than rank 0: {what} ({value[:12]}, not {first[what][:12]})")


def check_shared(work: Path) -> None:
    """Go on when the first process has made the work folder ready. Raises ValueError where a process does not see it."""
    if world().size == 1:
        return
    wanted = world().agreed(lambda: {"run": uuid.uuid4().hex, "processes": world().size})
    if world().first:
        write_json(work / FILE, wanted)
    until = time.monotonic() + PATIENCE
    while read_json(work / FILE) != wanted and time.monotonic() < until:
        time.sleep(0.1)
    seen = world().everyone(read_json(work / FILE) == wanted)
    if not all(seen):
        raise ValueError(
            f"output: rank {seen.index(False)} does not see {work}, where the others work; give an output that all hosts share"
        )
