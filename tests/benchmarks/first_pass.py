"""Seconds of the first pass, statistics and decompositions, of a recipe; alone or under torchrun.

    python tests/benchmarks/first_pass.py RECIPE FOLDER
    torchrun --nproc-per-node 2 tests/benchmarks/first_pass.py RECIPE FOLDER

FOLDER is for the work, which is made anew. Give every process the same number of threads (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from compress.fitting.decide import first_pass_of
from compress.fitting.job import prepare, source_hash_of, tokens_of
from compress.parallel.world import world
from compress.progress import silent
from compress.recipe import load_recipe


def main() -> None:
    """Measure and print, in the first process."""
    recipe, work = load_recipe(Path(sys.argv[1])), Path(sys.argv[2])
    job = prepare(recipe, work)
    tokens = tokens_of(job)
    first_pass = first_pass_of(job, source_hash_of(job, tokens))
    if world().first:
        shutil.rmtree(work, ignore_errors=True)
    world().meet()
    started = time.perf_counter()
    first_pass.run(job.units, tokens, silent)
    world().meet()
    if world().first:
        print(f"{world().size} processes: {time.perf_counter() - started:.1f} s", flush=True)
    world().leave()


if __name__ == "__main__":
    main()
