"""Surgical rank search: from the last layer to the first, each linear gets the smallest rank at which the metric holds.

    units ──candidate ranks, smallest first──► trials from cached hidden states ──► search.jsonl ──► ranks.json

SFSD-LLM (ACL 2024): ranks 1, 10 %, 20 %, … 100 % of break-even; by perplexity the k-th linear must stay below
base·(1 + tolerance)^k, by task accuracy it takes the largest rank that three chunks of questions ask for, checked on a fourth.
The result is reported on windows, or questions, that the search never saw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from compress.checkpoint.files import hash_json, write_json
from compress.checkpoint.manifest import Manifest
from compress.checkpoint.units import Artefact
from compress.fitting.assemble import storage_dtype
from compress.fitting.decide import first_pass_of
from compress.fitting.job import Job, prepare, source_hash_of, tokens_of
from compress.fitting.units import Unit, layers_of
from compress.methods.base import Ranks, Replacement
from compress.progress import Progress, silent
from compress.recipe import Recipe
from compress.searching import metrics
from compress.searching.cached_states import Split, Tail
from compress.searching.decision_log import append, open_log, search_folder

LOG, TABLE = "search.jsonl", "ranks.json"


class SearchOptions(BaseModel):
    """How a search measures and how much it may lose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Literal["perplexity", "tasks"] = "perplexity"
    tolerance: Annotated[float, Field(ge=0)] | None = Field(
        None, description="perplexity may grow by this fraction per linear (0.005), accuracy fall by this much (0.01)"
    )
    tasks: Path | None = Field(None, description="jsonl file of questions, for metric tasks; half of it is the test split")
    search_windows: Annotated[int, Field(ge=1)] = Field(32, description="first windows of the first evaluation text")
    test_windows: Annotated[int, Field(ge=1)] = Field(64, description="last windows of the same text")
    length: Annotated[int, Field(ge=2)] = Field(128, description="tokens per window")
    compare_uniform: bool = True

    @model_validator(mode="after")
    def _tasks_need_a_file(self) -> SearchOptions:
        if (self.metric == "tasks") != (self.tasks is not None):
            raise ValueError("metric tasks goes with a file of questions: give --metric tasks --tasks FILE.jsonl, or neither")
        return self

    @property
    def allowed(self) -> float:
        """The tolerance, or what is usual for the metric."""
        return self.tolerance if self.tolerance is not None else 0.005 if self.metric == "perplexity" else 0.01


@dataclass(frozen=True)
class Target:
    """One unit of the recipe with its finished artefact and the ranks it may take."""

    unit: Unit
    artefact: Artefact
    ranks: Ranks

    def replacement(self, rank: int | None, job: Job) -> Replacement:
        """What the unit becomes at a rank; None leaves it dense."""
        return self.ranks.at(rank).replace(self.unit.group, self.artefact, job.model.architecture)


def search(
    recipe: Recipe, options: SearchOptions | None = None, *, fresh: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Choose the ranks of a recipe's low-rank steps; writes `<output>/ranks.json`, which `rank: {table: …}` reads.

    Returns its content: the ranks by module, and rows of stored numbers and the metric on both splits, with the controls.
    Every decision is a line of `<output>/search.jsonl`: an interrupted search continues behind its last one unless `fresh`.
    Raises ValueError for steps without ranks, too little text, or a log that belongs to another search.
    """
    options = options or SearchOptions.model_validate({})
    job = prepare(recipe)
    _within_layers(job)
    # Read before anything of an earlier search is forgotten.
    if options.tasks is not None:
        splits: metrics.Splits = metrics.questions(options.tasks, recipe.seed, job.original.tokenizer())
    else:
        splits = metrics.windows(job, options.length, options.search_windows, options.test_windows)
    tokens = tokens_of(job)
    with search_folder(job, "search", fresh, LOG, TABLE) as folder:
        return _search(job, options, splits, tokens, folder, progress)


def _search(
    job: Job, options: SearchOptions, splits: metrics.Splits, tokens: Tensor, folder: Manifest, progress: Progress
) -> dict[str, Any]:
    log = folder.folder / LOG
    asked, held_out = splits
    source_hash = source_hash_of(job, tokens)
    first_pass = first_pass_of(job, source_hash)
    first_pass.run(job.variants["compressed"], tokens, progress)
    targets = [_target(unit, artefact) for unit in job.variants["compressed"] if (artefact := first_pass.artefact(unit))]
    targets.sort(key=lambda t: -t.unit.group.layer)  # stable: within a layer, in the architecture's order
    first = min(target.unit.group.layer for target in targets)
    header = {
        "format": 1,
        "units": hash_json([[t.unit.fingerprint(source_hash), t.unit.group.name] for t in targets]),
        "splits": hash_json([part.tokens.tolist() for part in (*asked, held_out)]),
        "metric": options.metric,
        "tolerance": options.allowed,
    }
    states = job.work / "search"
    tick = progress("cache hidden states", job.model.n_layers * (len(asked) + 1))
    chunks = [Split(job.model, metric, states / str(i), first, tick) for i, metric in enumerate(asked)]
    test = Split(job.model, held_out, states / "test", first, tick)
    ranks = _decide(job, targets, chunks, options, log, header, progress)
    results = _compare(job, targets, chunks, test, ranks, options)
    for split in (*chunks, test):
        split.close()
    table = {module: rank for target, rank in zip(targets, ranks, strict=True) for module in target.unit.group.modules}
    found = {"format": 1, "ranks": table, "metric": options.metric, "tolerance": options.allowed, "results": results}
    with folder.files(TABLE) as (path,):
        write_json(path, found)
    return found


def _within_layers(job: Job) -> None:
    """Raises ValueError for steps whose ranks cannot be searched, before anything is fitted."""
    for unit in job.variants["compressed"]:
        if not unit.method.has_ranks:
            raise ValueError(f"steps.{unit.group.step}: {unit.step.method} has no rank to search; leave low-rank steps only")
        if len(layers_of(unit.group.modules, job.model.architecture)) > 1:
            raise ValueError(f"steps.{unit.group.step}: a basis over several layers cannot be searched; use layers_together: 1")


def _target(unit: Unit, artefact: Artefact) -> Target:
    ranks = unit.method.ranks(unit.group, artefact)
    assert ranks is not None  # the method has them
    return Target(unit, artefact, ranks)


def _decide(
    job: Job,
    targets: Sequence[Target],
    chunks: Sequence[Split],
    options: SearchOptions,
    log: Path,
    header: Mapping[str, Any],
    progress: Progress,
) -> list[int | None]:
    """The rank of each target, in order; decisions in the log are taken over."""
    known = open_log(log, header)
    tail = Tail(job.model, storage_dtype(job.model))
    ranks: list[int | None] = []
    tick = progress("search", len(targets))
    for number, target in enumerate(targets, start=1):
        tail.reach(target.unit.group.layer)
        if number <= len(known):
            # Decided before: put in place again, not measured again.
            rank = known[number - 1]["rank"]
        else:
            rank, trials = _smallest(job, target, tail, chunks, options, number)
            modules = list(target.unit.group.modules)
            append(
                log, {"number": number, "modules": modules, "rank": rank, "stored": target.ranks.stored(rank), "trials": trials}
            )
        ranks.append(rank)
        if rank is not None:
            tail.install(target.replacement(rank, job))
        tick()
    return ranks


def _smallest(
    job: Job, target: Target, tail: Tail, chunks: Sequence[Split], options: SearchOptions, number: int
) -> tuple[int | None, list[dict[str, Any]]]:
    """(smallest rank that holds, or None for dense; every trial)."""
    trials: list[dict[str, Any]] = []

    def holds(rank: int, chunk: int) -> bool:
        split = chunks[chunk]
        with tail.trying(target.replacement(rank, job)):
            value = split.measure(tail.first, tail.layers)
        if split.metric.higher_is_better:
            limit = split.baseline - options.allowed
            # Accuracies are fractions of a few questions: equality must not fail by rounding.
            good = value >= limit - 1e-12
        else:
            # SFSD-LLM: after k linears, k tolerances may be used up.
            limit = split.baseline * (1 + options.allowed) ** number
            good = value <= limit
        shown = value if math.isfinite(value) else None
        trials.append({"rank": rank, "chunk": chunk, "value": shown, "limit": limit, "holds": good})
        return good

    # All chunks but the last decide; perplexity has one, which decides alone.
    deciding = range(max(1, len(chunks) - 1))
    # Candidates rise, so the first that holds is the smallest.
    found = [next((rank for rank in target.ranks.candidates if holds(rank, chunk)), None) for chunk in deciding]
    if any(rank is None for rank in found):
        return None, trials
    rank = max(rank for rank in found if rank is not None)
    # The chunk that decided nothing confirms the choice, or the linear stays dense.
    if len(chunks) > 1 and not holds(rank, len(chunks) - 1):
        return None, trials
    return rank, trials


def _compare(
    job: Job,
    targets: Sequence[Target],
    chunks: Sequence[Split],
    test: Split,
    ranks: Sequence[int | None],
    options: SearchOptions,
) -> list[dict[str, Any]]:
    """Rows of the report: dense, surgical, as many parameters spent uniformly, or by the spectra where they compare."""
    dense = sum(target.ranks.stored(None) for target in targets)
    variants: dict[str, Sequence[int | None]] = {"surgical": ranks}
    if options.compare_uniform:
        size = sum(target.ranks.stored(rank) for target, rank in zip(targets, ranks, strict=True))
        variants["uniform"] = uniform_ranks(targets, size)
        if (allocated := _allocated(targets, size / dense)) is not None:
            variants["allocated"] = allocated

    on_search = sum(chunk.baseline for chunk in chunks) / len(chunks)
    rows = [{"ranks": "dense", "stored": dense, "kept": 1.0, "search": on_search, "test": test.baseline}]
    # A tail of its own: each variant starts from the original layers.
    for name, chosen in variants.items():
        tail = Tail(job.model, storage_dtype(job.model))
        tail.reach(min(target.unit.group.layer for target in targets))
        for target, rank in zip(targets, chosen, strict=True):
            if rank is not None:
                tail.install(target.replacement(rank, job))
        stored = sum(target.ranks.stored(rank) for target, rank in zip(targets, chosen, strict=True))
        on_search = sum(chunk.measure(tail.first, tail.layers) for chunk in chunks) / len(chunks)
        on_test = test.measure(tail.first, tail.layers)
        rows.append({"ranks": name, "stored": stored, "kept": stored / dense, "search": on_search, "test": on_test})
    return rows


def _allocated(targets: Sequence[Target], share: float) -> list[int | None] | None:
    """All ranks from one budget by the spectra; None where those do not compare."""
    method = targets[0].unit.method.budgeted(share)
    if method is None or len({target.ranks.scale for target in targets}) > 1:
        return None
    decided = method.decide([t.unit.group for t in targets], [t.artefact for t in targets])
    found = [d.ranks(t.unit.group, t.artefact) for d, t in zip(decided, targets, strict=True)]
    return [None if ranks is None else ranks.chosen for ranks in found]


def uniform_ranks(targets: Sequence[Target], size: int) -> list[int | None]:
    """The smallest same fraction of every target that stores at least `size` numbers: the control never has less."""

    def at(keep: float) -> list[int | None]:
        ranks = [target.ranks.fraction(keep) for target in targets]
        # A rank that stores no less than the matrix itself would only cost accuracy.
        return [r if t.ranks.stored(r) < t.ranks.stored(None) else None for t, r in zip(targets, ranks, strict=True)]

    # 40 halvings narrow the fraction down to 1e-12; `high` is the side that stores enough.
    low, high = 0.0, 1.0
    for _ in range(40):
        keep = (low + high) / 2
        stored = sum(target.ranks.stored(rank) for target, rank in zip(targets, at(max(keep, 1e-9)), strict=True))
        low, high = (keep, high) if stored < size else (low, keep)
    return at(high)
