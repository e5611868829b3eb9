"""Which layers to replace: greedily, the one that costs the least nll for what it saves, measured in place.

    one step over its layers ──fit once──► trials from cached hidden states ──► layers.jsonl ──► layers.json, layers.png

What a step saves its method says: multiply-adds of the MLPs, numbers to average in crystallized attention. Beside an MLP
method, an affine map and channel pruning of as many multiply-adds are chosen in the same way, each in its own best order:
curves of perplexity against the share of the multiply-adds that is gone. Choices are made on one split, the curves are of
another. Every replacement is fitted on the original's inputs, as `fit` does (fitting it on what the others leave does not pay:
tests/benchmarks/refit_later.py), and measured among those already in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from compress import methods
from compress.checkpoint.files import hash_json, write_json
from compress.checkpoint.manifest import Manifest
from compress.fitting.assemble import storage_dtype
from compress.fitting.job import Job, prepare, source_hash_of, tokens_of
from compress.progress import Progress, silent
from compress.recipe import Recipe, Step
from compress.reporting import plots
from compress.searching import metrics
from compress.searching.cached_states import Split, Tail
from compress.searching.candidates import Candidate, families, resized
from compress.searching.decision_log import append, open_log, search_folder

LOG, CHOICES, PICTURE = "layers.jsonl", "layers.json", "layers.png"


class LayerOptions(BaseModel):
    """How far to go and what to measure on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="fraction of the targeted layers' cost that may remain; None replaces them all, for the curve"
    )
    search_windows: Annotated[int, Field(ge=1)] = Field(32, description="first windows of the first evaluation text")
    test_windows: Annotated[int, Field(ge=1)] = Field(64, description="last windows of the same text")
    length: Annotated[int, Field(ge=2)] = Field(128, description="tokens per window")
    sizes: dict[str, list[Any]] = Field(
        {}, max_length=1, description="an option of the step and its values: a layer may take any, and go on to a smaller one"
    )
    controls: bool = Field(True, description="draw the curves of an affine map and of pruning at equal cost too")


@dataclass(frozen=True)
class Splits:
    """What is measured on: the search decides, the test is reported."""

    search: Split
    test: Split


def choose_layers(
    recipe: Recipe, options: LayerOptions | None = None, *, fresh: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Choose the layers of a recipe's one step; writes `<output>/layers.json` and `layers.png`, returns the former.

    "layers" are the chosen ones, ascending, "steps" those of a recipe that replaces them; "families" has, by method, a row per
    replacement in the order of choice: the layer and its size, the share of the targeted layers' cost "removed" so far, and
    perplexity on both splits (None where it overflows).
    Every choice is a line of `<output>/layers.jsonl`: an interrupted run continues behind its last one unless `fresh`. Raises
    ValueError for other steps, too little text, a budget out of reach, or a log of another run.
    """
    options = options or LayerOptions.model_validate({})
    saves = recipe.steps[0].options.saves
    if len(recipe.steps) != 1 or saves is None:
        found = ", ".join(step.method for step in recipe.steps)
        able = ", ".join(name for name in methods.names() if methods.load(name).saves is not None)
        raise ValueError(f"layers are chosen for one step of {able}; the recipe has {found}")
    job = prepare(recipe)
    # Read before anything of an earlier run is forgotten.
    splits = metrics.windows(job, options.length, options.search_windows, options.test_windows)
    tokens = tokens_of(job)
    with search_folder(job, "layers", fresh, LOG, CHOICES, PICTURE) as folder:
        return _choose(job, options, saves, splits, tokens, folder, progress)


def _choose(
    job: Job,
    options: LayerOptions,
    saves: str,
    splits: tuple[list[metrics.Perplexity], metrics.Perplexity],
    tokens: Tensor,
    folder: Manifest,
    progress: Progress,
) -> dict[str, Any]:
    recipe, log = job.recipe, folder.folder / LOG
    (asked,), held_out = splits
    found = families(job, tokens, options.sizes, options.controls, progress)
    own = recipe.steps[0].method
    # The sizes of a layer are alternatives: what they replace counts once.
    total = sum({candidate.layer: candidate.before for candidate in found[own]}.values())
    goal = _goal(found[own], total, options.budget)
    units = {name: [[c.unit.fingerprint(""), c.after] for c in candidates] for name, candidates in found.items()}
    # What was asked: a log goes on only where all of this is the same.
    header = {
        "format": 1,
        "units": hash_json([source_hash_of(job, tokens), units]),
        "splits": hash_json([asked.tokens.tolist(), held_out.tokens.tolist()]),
    }
    known = open_log(log, header)
    # Hidden states are needed from the lowest layer that any family changes.
    first = min(candidate.layer for candidates in found.values() for candidate in candidates)
    states, tick = job.work / "layers", progress("cache hidden states", 2 * job.model.n_layers)
    on = Splits(*(Split(job.model, p, states / n, first, tick) for n, p in (("search", asked), ("test", held_out))))
    curves = {}
    for name, candidates in found.items():
        earlier = [line for line in known if line["family"] == name]
        rows = _Greedy(job, candidates, on).run(goal, earlier, _writer(log, name), progress(name, len(candidates)))
        curves[name] = [{**row, "removed": row["saved"] / total} for row in rows]
    for split in (on.search, on.test):
        split.close()
    reached = curves[own][-1]["saved"] if curves[own] else 0
    if goal != math.inf and reached < goal:
        raise RuntimeError(f"{own}: the model overflows with any further layer replaced; {1 - reached / total:.3f} remain")
    dense = {"search": on.search.baseline, "test": on.test.baseline, "cost": total}
    taken = {row["layer"]: row["size"] for row in curves[own]}  # the last size of each layer
    steps = _steps(recipe.steps[0], options.sizes, taken)
    out = {
        "format": 1,
        "saves": saves,
        "budget": options.budget,
        "layers": sorted(taken),
        "steps": steps,
        "dense": dense,
        "families": curves,
    }
    with folder.files(CHOICES, PICTURE) as (choices, picture):
        write_json(choices, out)
        draw(out, picture)
    return out


def draw(found: Mapping[str, Any], path: Path) -> Path:
    """The curves of layers.json: perplexity on the test split over the share of the cost that is removed, in percent."""
    dense = found["dense"]["test"]
    curves = {
        name: [(0.0, dense), *((100 * row["removed"], row["test"]) for row in rows if row["test"] is not None)]
        for name, rows in found["families"].items()
    }
    return plots.curve(curves, path, f"{found['saves']} removed, %", "perplexity, test split", baseline=dense)


def _goal(candidates: Sequence[Candidate], total: int, budget: float | None) -> float:
    """Cost to save. Raises ValueError where all candidates together do not."""
    if budget is None:
        return math.inf
    # At most, every layer takes its candidate that saves most.
    most: dict[int, int] = {}
    for candidate in candidates:
        most[candidate.layer] = max(most.get(candidate.layer, 0), candidate.saved)
    least = 1 - sum(most.values()) / total
    if least > budget:
        raise ValueError(
            f"budget: {budget:g} given, but with every targeted layer replaced {least:.3f} of their cost remain; "
            "give a larger budget, more layers, or smaller replacements"
        )
    return (1 - budget) * total


def _steps(step: Step, sizes: Mapping[str, Sequence[Any]], taken: Mapping[int, Any]) -> list[dict[str, Any]]:
    """The steps of a recipe, as plain data, that replace each layer at the size it took."""
    key = next(iter(sizes), "")
    values = list(dict.fromkeys(taken[layer] for layer in sorted(taken)))
    of = {value: [layer for layer in sorted(taken) if taken[layer] == value] for value in values}
    return [{**resized(step, key, value).to_yaml(), "targets": {"layers": layers}} for value, layers in of.items()]


def _writer(log: Path, family: str) -> Callable[[Mapping[str, Any]], None]:
    return lambda line: append(log, {"family": family, **line})


class _Greedy:
    """One family on its way through the model; a candidate is its index in the family.

    Lazy greedy (Minoux, Optimization Techniques, 1978): what a replacement costs rarely falls when others join it, so a
    candidate is measured again only while its last measured cost is the lowest. The first choice measures them all.
    """

    def __init__(self, job: Job, candidates: Sequence[Candidate], on: Splits) -> None:
        self.on, self.candidates = on, candidates
        # −inf: not measured, so it is looked at before any that was.
        self.costs = dict.fromkeys(range(len(candidates)), -math.inf)  # nll per unit of cost saved, as last measured
        self.tail = Tail(job.model, storage_dtype(job.model))
        self.tail.reach(min(candidate.layer for candidate in candidates))
        self.first = job.model.n_layers  # the lowest layer that is replaced
        self.by_layer: dict[int, int] = {}  # cost saved
        self.nll = math.log(on.search.baseline)

    @property
    def saved(self) -> int:
        """Cost saved by all that is in place."""
        return sum(self.by_layer.values())

    def run(
        self,
        goal: float,
        known: Sequence[Mapping[str, Any]],
        write: Callable[[Mapping[str, Any]], None],
        tick: Callable[[], None],
    ) -> list[dict[str, Any]]:
        """Replace until `goal` of the cost is saved; `known` choices are taken over, new ones written."""
        lines = list(known)
        rows = []
        while self.costs and self.saved < goal:
            number = len(rows)
            if number < len(lines):
                line = lines[number]
                # What the log says of trials counts as measured, so the search goes on as if it had never stopped.
                for trial in line["trials"]:
                    self._learn(trial["candidate"], trial["search"])
            else:
                line = self._decide()
                if line is None:  # everything left overflows
                    break
            self._take(line)
            if number >= len(lines):
                # The test is measured on what was chosen, and chooses nothing.
                line = {**line, "saved": self.saved, "test": self._measure(self.on.test, self.first)}
                write(line)
            rows.append({key: line[key] for key in ("layer", "size", "saved", "search", "test")})
            tick()
        return rows

    def _decide(self) -> dict[str, Any] | None:
        trials: dict[int, float | None] = {}
        while True:
            # The earlier of two equal ones, so that the order is always the same.
            index = min(self.costs, key=lambda i: (self.costs[i], i))
            # Measured against what is in place now, and still lowest: others' last costs count as lower bounds (Minoux).
            if index in trials:
                break
            candidate = self.candidates[index]
            with self.tail.trying(candidate.replacement):
                # From the lowest layer that is not the original's.
                trials[index] = self._measure(self.on.search, min(candidate.layer, self.first))
            self._learn(index, trials[index])
        if trials[index] is None:
            return None
        candidate = self.candidates[index]
        tried = [{"candidate": i, "search": value} for i, value in trials.items()]
        about = {"candidate": index, "layer": candidate.layer, "size": candidate.size}
        return {**about, "search": trials[index], "trials": tried}

    def _learn(self, index: int, perplexity: float | None) -> None:
        nll = math.inf if perplexity is None else math.log(perplexity)
        candidate = self.candidates[index]
        # Per cost saved on top of what the layer at hand saves already.
        self.costs[index] = (nll - self.nll) / (candidate.saved - self.by_layer.get(candidate.layer, 0))

    def _take(self, line: Mapping[str, Any]) -> None:
        taken = self.candidates[line["candidate"]]
        self.tail.install(taken.replacement)
        self.first = min(self.first, taken.layer)
        self.by_layer[taken.layer] = taken.saved
        self.nll = math.log(line["search"])
        for index in [i for i in self.costs if self.candidates[i].layer == taken.layer]:
            del self.costs[index]
            # A taken layer may go on to a smaller size, never back.
            if self.candidates[index].saved > taken.saved:
                self.costs[index] = -math.inf  # what it adds to the one in place is not known yet

    def _measure(self, split: Split, first: int) -> float | None:
        """Perplexity from the cached states before layer `first`; None where it overflows."""
        value = split.measure(first, self.tail.layers[first - self.tail.first :])
        return value if math.isfinite(value) else None
