"""Which MLPs to replace: greedily, the one that costs the least nll per multiply-add saved, measured in place.

    MLP step over its layers ──fit once──► trials from cached hidden states ──► layers.jsonl ──► layers.json, layers.png

Beside the recipe's own method, an affine map and channel pruning of as many multiply-adds are chosen in the same way, each in
its own best order: curves of perplexity against the share of the MLPs' multiply-adds that is gone. Choices are made on one
split, the curves are of another. Every replacement is fitted on the original's inputs, as `fit` does, and measured among those
already in place.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress import checkpoint, data, plots, run, splits
from compress.assembly import storage_dtype
from compress.decision_log import append, open_log
from compress.mistakes import explain
from compress.mlp_candidates import Candidate, families
from compress.recipe import Recipe
from compress.run import Job, Progress, silent
from compress.trials import Split, Tail


class LayerOptions(BaseModel):
    """How far to go and what to measure on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="fraction of the targeted MLPs' multiply-adds that may remain; None replaces them all, for the curve"
    )
    search_windows: Annotated[int, Field(ge=1)] = Field(32, description="first windows of the first evaluation text")
    test_windows: Annotated[int, Field(ge=1)] = Field(64, description="last windows of the same text")
    length: Annotated[int, Field(ge=2)] = Field(128, description="tokens per window")
    controls: bool = Field(True, description="draw the curves of an affine map and of pruning at equal cost too")


def options_of(given: Mapping[str, Any]) -> LayerOptions:
    """Checked options. Raises ValueError with one line per mistake."""
    try:
        return LayerOptions.model_validate(given)
    except ValidationError as error:
        raise ValueError("\n".join(explain(error, LayerOptions))) from None


@dataclass(frozen=True)
class Splits:
    """What is measured on: the search decides, the test is reported."""

    search: Split
    test: Split


def choose_layers(
    recipe: Recipe, options: LayerOptions | None = None, *, fresh: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Choose the layers of a recipe's one MLP step; writes `<output>/layers.json` and `layers.png`, returns the former.

    "layers" are the chosen ones, ascending; "families" has, by method, a row per replacement in the order of choice: the layer,
    the share of the targeted MLPs' multiply-adds "removed" so far, and perplexity on both splits (None where it overflows).
    Every choice is a line of `<output>/layers.jsonl`: an interrupted run continues behind its last one unless `fresh`. Raises
    ValueError for other steps, too little text, a budget out of reach, or a log of another run.
    """
    options = options or LayerOptions.model_validate({})
    if len(recipe.steps) != 1 or recipe.steps[0].options.replaces != "mlp":
        found = ", ".join(step.method for step in recipe.steps)
        raise ValueError(f"layers are chosen for one step that replaces MLPs; the recipe has {found}")
    job = run.prepare(recipe)
    log = recipe.output / "layers.jsonl"
    if fresh:
        shutil.rmtree(job.work, ignore_errors=True)
        log.unlink(missing_ok=True)
    sizes = options.length, options.search_windows, options.test_windows
    (asked,), held_out = splits.windows(recipe.evaluation, *sizes, data.load_tokenizer(str(job.model.shards.folder)))
    tokens = run.tokens_of(job)
    found = families(job, tokens, options.controls, progress)
    own = recipe.steps[0].method
    total = sum(candidate.before for candidate in found[own])
    goal = _goal(found[own], total, options.budget)
    units = {name: [[c.unit.fingerprint(""), c.after] for c in candidates] for name, candidates in found.items()}
    header = {
        "format": 1,
        "units": checkpoint.hash_json([run.material_of(job, tokens), units]),
        "splits": checkpoint.hash_json([asked.tokens.tolist(), held_out.tokens.tolist()]),
    }
    known = open_log(log, header)
    first = min(candidate.layer for candidates in found.values() for candidate in candidates)
    folder, tick = job.work / "layers", progress("cache hidden states", 2 * job.model.n_layers)
    on = Splits(*(Split(job.model, p, folder / n, first, tick) for n, p in (("search", asked), ("test", held_out))))
    curves = {}
    for name, candidates in found.items():
        earlier = [line for line in known if line["family"] == name]
        rows = _Greedy(job, candidates, on).run(goal, earlier, _writer(log, name), progress(name, len(candidates)))
        curves[name] = [{**row, "removed": row["saved"] / total} for row in rows]
    for split in (on.search, on.test):
        split.close()
    reached = curves[own][-1]["saved"] if curves[own] else 0
    if goal != math.inf and reached < goal:
        raise RuntimeError(f"{own}: the model overflows with any further MLP replaced; {1 - reached / total:.3f} remain")
    dense = {"search": on.search.baseline, "test": on.test.baseline, "multiply_adds": total}
    layers = sorted(row["layer"] for row in curves[own])
    out = {"format": 1, "budget": options.budget, "layers": layers, "dense": dense, "families": curves}
    checkpoint.write_json(recipe.output / "layers.json", out)
    draw(out, recipe.output / "layers.png")
    return out


def draw(found: Mapping[str, Any], path: Path) -> Path:
    """The curves of layers.json: perplexity on the test split over the share of multiply-adds removed, in percent."""
    dense = found["dense"]["test"]
    curves = {
        name: [(0.0, dense), *((100 * row["removed"], row["test"]) for row in rows if row["test"] is not None)]
        for name, rows in found["families"].items()
    }
    return plots.curve(curves, path, "multiply-adds of the MLPs removed, %", "perplexity, test split", baseline=dense)


def _goal(candidates: Sequence[Candidate], total: int, budget: float | None) -> float:
    """Multiply-adds to save. Raises ValueError where all candidates together do not."""
    if budget is None:
        return math.inf
    least = 1 - sum(candidate.saved for candidate in candidates) / total
    if least > budget:
        raise ValueError(
            f"budget: {budget:g} given, but with every targeted MLP replaced {least:.3f} of their multiply-adds remain; "
            "give a larger budget, more layers, or smaller replacements"
        )
    return (1 - budget) * total


def _writer(log: Path, family: str) -> Callable[[Mapping[str, Any]], None]:
    return lambda line: append(log, {"family": family, **line})


class _Greedy:
    """One family on its way through the model.

    Lazy greedy (Minoux, Optimization Techniques, 1978): what a replacement costs rarely falls when others join it, so a
    candidate is measured again only while its last measured cost is the lowest. The first choice measures them all.
    """

    def __init__(self, job: Job, candidates: Sequence[Candidate], on: Splits) -> None:
        self.on = on
        self.pending = {candidate.layer: candidate for candidate in candidates}
        self.costs = dict.fromkeys(self.pending, -math.inf)  # nll per multiply-add, as last measured
        self.tail = Tail(job.model, storage_dtype(job.model))
        self.tail.reach(min(self.pending))
        self.first = job.model.n_layers  # the lowest layer that is replaced
        self.saved = 0
        self.nll = math.log(on.search.baseline)

    def run(
        self,
        goal: float,
        known: Sequence[Mapping[str, Any]],
        write: Callable[[Mapping[str, Any]], None],
        tick: Callable[[], None],
    ) -> list[dict[str, Any]]:
        """Replace until `goal` multiply-adds are saved; `known` choices are taken over, new ones written."""
        lines = list(known)
        rows = []
        while self.pending and self.saved < goal:
            number = len(rows)
            if number < len(lines):
                line = lines[number]
                for trial in line["trials"]:
                    self._learn(trial["layer"], trial["search"])
            else:
                line = self._decide()
                if line is None:  # everything left overflows
                    break
            self._take(line)
            if number >= len(lines):
                line = {**line, "saved": self.saved, "test": self._measure(self.on.test, self.first)}
                write(line)
            rows.append({key: line[key] for key in ("layer", "saved", "search", "test")})
            tick()
        return rows

    def _decide(self) -> dict[str, Any] | None:
        trials = []
        measured: set[int] = set()
        while True:
            layer = min(self.pending, key=lambda i: (self.costs[i], i))
            if layer in measured:
                break
            with self.tail.trying(self.pending[layer].replacement):
                value = self._measure(self.on.search, min(layer, self.first))
            self._learn(layer, value)
            measured.add(layer)
            trials.append({"layer": layer, "search": value})
        value = next(trial["search"] for trial in trials if trial["layer"] == layer)
        return None if value is None else {"layer": layer, "search": value, "trials": trials}

    def _learn(self, layer: int, perplexity: float | None) -> None:
        nll = math.inf if perplexity is None else math.log(perplexity)
        self.costs[layer] = (nll - self.nll) / self.pending[layer].saved

    def _take(self, line: Mapping[str, Any]) -> None:
        candidate = self.pending.pop(line["layer"])
        self.tail.install(candidate.replacement)
        self.first = min(self.first, candidate.layer)
        self.saved += candidate.saved
        self.nll = math.log(line["search"])

    def _measure(self, split: Split, first: int) -> float | None:
        """Perplexity from the cached states before layer `first`; None where it overflows."""
        value = split.measure(first, self.tail.layers[first - self.tail.first :])
        return value if math.isfinite(value) else None
