"""One recipe at many values: the product of the lists, every point a checkpoint, statistics and decompositions computed once.

    --set a=1,2 --set b=x,y ──► 4 recipes ──one first pass over all their units──► 4 checkpoints ──► sweep.json, sweep.png

The points share one work folder. Unit files carry a fingerprint of every option that fitting reads, so points that differ in a
rank share the decomposition, and points that differ in the method at least share the forward (and backward) pass.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from compress.checkpoint.files import atomic, read_json, write_json
from compress.fitting import run
from compress.fitting.calibrate import FirstPass
from compress.fitting.job import Job, prepare, source_hash_of, tokens_of
from compress.progress import Progress, silent
from compress.recipe import Recipe, parse_recipe, read_yaml, set_value

RANK_LISTS = ("rank", "keep", "budget", "explained_variance")


@dataclass(frozen=True)
class Point:
    """One recipe of a sweep: the values that make it, and the folder under the sweep's output that holds its checkpoint."""

    settings: Mapping[str, Any]
    name: str
    recipe: Recipe


Origin = str | Path | Mapping[str, Any]  # a recipe file, or plain data
Settings = Sequence[str] | Mapping[str, Sequence[Any]]  # ["key=a,b,c"], or {"key": [a, b, c]}


def sweep(recipe: Origin, settings: Settings, progress: Progress = silent, *, fresh: bool = False) -> list[dict[str, Any]]:
    """Fit a recipe (a file, or plain data) at the product of `key=a,b,c` settings; a key with one value holds for every point.

    Writes `<output>/sweep.json` and, where a key is numeric, `<output>/sweep.png`; each point's checkpoint lies in a folder
    named by its values. Finished points of an earlier run are taken over unless `fresh`. Returns the points of sweep.json.
    """
    return fit_points(points_of_settings(recipe, settings), progress, fresh=fresh)


def points_of_settings(recipe: Origin, settings: Settings, overrides: Sequence[str] = ()) -> list[Point]:
    """The points of `sweep`, checked. Raises ValueError for settings that vary nothing or do not make a recipe."""
    plain, origin = _read(recipe, overrides)
    axes = dict(settings) if isinstance(settings, Mapping) else dict(parse_setting(setting) for setting in settings)
    if all(len(values) == 1 for values in axes.values()):
        raise ValueError("a sweep needs a key with several values, such as --set steps.0.rank.keep=0.8,0.6,0.4")
    return points_of(plain, axes, origin)


def parse_setting(setting: str) -> tuple[str, list[Any]]:
    """("key", [values]) of `key=a,b,c`; commas inside brackets belong to a value.

    >>> parse_setting("steps.0.rank.keep=0.8,0.6")
    ('steps.0.rank.keep', [0.8, 0.6])
    """
    key, equals, text = setting.partition("=")
    try:
        values = yaml.safe_load(f"[{text}]") if equals and key else None
    except yaml.YAMLError:
        values = None
    if not values:
        raise ValueError(f"--set {setting!r}: write dotted.key=a,b,c, such as steps.0.rank.keep=0.8,0.6,0.4")
    return key, values


def rank_lists(plain: Any) -> dict[str, list[Any]]:
    """{dotted key: values} of the rank rules in plain recipe data that hold a list instead of one value."""
    steps = plain.get("steps") if isinstance(plain, Mapping) else None
    found = {}
    for index, step in enumerate(steps if isinstance(steps, list) else []):
        rule = step.get("rank") if isinstance(step, Mapping) else None
        if isinstance(rule, list):  # a list of bare integers
            found[f"steps.{index}.rank"] = rule
        elif isinstance(rule, Mapping):
            found |= {f"steps.{index}.rank.{key}": rule[key] for key in RANK_LISTS if isinstance(rule.get(key), list)}
    for key, values in found.items():
        if not values:
            raise ValueError(f"{key}: the list is empty; give one value or several")
    return found


def points_of_lists(recipe: Origin, overrides: Sequence[str] = ()) -> list[Point]:
    """The points of a recipe whose rank rules hold lists, named by their values alone; none where no rule does."""
    plain, origin = _read(recipe, overrides)
    axes = rank_lists(plain)
    return points_of(plain, axes, origin, bare=True) if axes else []


def _read(recipe: Origin, overrides: Sequence[str]) -> tuple[Any, str]:
    """(plain data with the overrides, what messages call it)."""
    named = isinstance(recipe, (str, Path))
    plain = read_yaml(recipe) if named else copy.deepcopy(recipe)
    for override in overrides if isinstance(plain, dict) else ():
        set_value(plain, override)
    return plain, str(recipe) if named else "recipe"


def points_of(plain: Any, axes: Mapping[str, Sequence[Any]], origin: str = "recipe", bare: bool = False) -> list[Point]:
    """The recipes of all combinations, checked; folders are named `key=value,…`, or by the values alone where `bare`."""
    points = []
    varied = [key for key, values in axes.items() if len(values) > 1] or list(axes)
    for combination in itertools.product(*axes.values()):
        settings = dict(zip(axes, combination, strict=True))
        made = copy.deepcopy(dict(plain)) if isinstance(plain, Mapping) else plain
        for key, value in settings.items():
            set_value(made, f"{key}={json.dumps(value)}")
        recipe = parse_recipe(made, origin=origin)
        shown = {key: settings[key] for key in varied}
        name = ",".join(_slug(v) if bare else f"{_short(key, varied)}={_slug(v)}" for key, v in shown.items())
        points.append(Point(shown, name, recipe.model_copy(update={"output": recipe.output / name})))
    twice = [p.name for i, p in enumerate(points) if p.name in {q.name for q in points[:i]}]
    if twice:
        raise ValueError(f"two points of the sweep are named {twice[0]!r}; give each value once")
    return points


def fit_points(points: Sequence[Point], progress: Progress = silent, *, fresh: bool = False) -> list[dict[str, Any]]:
    """Fit every point that has no checkpoint yet, all statistics first, in one pass per distinct model and calibration text."""
    root = points[0].recipe.output.parent
    if fresh:
        shutil.rmtree(root / "work", ignore_errors=True)
        (root / "sweep.json").unlink(missing_ok=True)
    jobs = [prepare(point.recipe, root / "work") for point in points]
    tokens = {}
    source_hashes = []
    for job in jobs:
        key = (job.recipe.model, job.recipe.calibration)
        tokens.setdefault(key, tokens_of(job) if key not in tokens else None)
        source_hashes.append(source_hash_of(job, tokens[key]))
    known = {row["name"]: row for row in (read_json(root / "sweep.json") or {}).get("points", [])}
    rows = {
        point.name: known[point.name]
        for point, source_hash in zip(points, source_hashes, strict=True)
        if point.name in known and _is_of(known[point.name], point, source_hash)
    }
    waiting = [i for i, point in enumerate(points) if point.name not in rows]
    for source_hash in dict.fromkeys(source_hashes[i] for i in waiting):
        members = [jobs[i] for i in waiting if source_hashes[i] == source_hash]
        _fit_units(members, source_hash, tokens[members[0].recipe.model, members[0].recipe.calibration], progress)
    tick = progress("points", len(waiting))
    for i in waiting:
        run.fit(points[i].recipe, work=root / "work")
        rows[points[i].name] = _row(points[i], source_hashes[i])
        _write(root, points, rows)
        tick()
    done = _write(root, points, rows)
    plot(done, root / "sweep.png")
    return done


def _fit_units(jobs: Sequence[Job], source_hash: str, tokens: Tensor, progress: Progress) -> None:
    """The units of several jobs over the same model and tokens, in one pass."""
    units = {(unit.group.name, unit.fingerprint(source_hash)): unit for job in jobs for unit in job.units}
    ordered = sorted(units.values(), key=lambda u: (u.group.layer, u.group.name))
    keep_gradients = any(job.second_pass for job in jobs)
    FirstPass(jobs[0].model, jobs[0].work, source_hash, jobs[0].recipe.seed, keep_gradients).run(ordered, tokens, progress)


def _is_of(row: Mapping[str, Any], point: Point, source_hash: str) -> bool:
    """Whether a row and its folder still are what this point would make."""
    output = point.recipe.output
    recipe = output / "recipe.yaml"
    whole = (output / "config.json").is_file() and (output / "report.json").is_file() and recipe.is_file()
    return whole and row.get("material") == source_hash and recipe.read_text(encoding="utf-8") == point.recipe.to_yaml()


def _row(point: Point, source_hash: str) -> dict[str, Any]:
    report = json.loads((point.recipe.output / "report.json").read_text(encoding="utf-8"))
    modules = [m for m in report["modules"] if m.get("relative_error") is not None]
    return {
        "settings": dict(point.settings),
        "name": point.name,
        "material": source_hash,
        "parameters": report["parameters"],
        "evaluation": report["evaluation"],
        "ranks": {m["module"]: m.get("rank") for m in modules},
        # relative_error is the root of the discarded share
        "explained_variance": {m["module"]: 1 - m["relative_error"] ** 2 for m in modules},
    }


def _write(root: Path, points: Sequence[Point], rows: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    done = [rows[point.name] for point in points if point.name in rows]
    write_json(root / "sweep.json", {"format": 1, "points": done})
    return done


def _short(key: str, keys: Sequence[str]) -> str:
    """The fewest last parts of a dotted key that no other key ends with."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        tail = parts[-count:]
        if sum(other.split(".")[-count:] == tail for other in keys) == 1:
            return ".".join(tail)
    return key


def _slug(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return re.sub(r"[^\w.+-]+", "_", text).strip("_") or "_"


def plot(points: Sequence[Mapping[str, Any]], file: Path) -> bool:
    """Perplexity over one numeric key as curves, over two as heat maps, one panel a text; False where there is nothing to draw.

    Further keys give one curve for each of their values. The axis is logarithmic where perplexities differ more than tenfold.
    """
    texts = list(next(iter(points[0]["evaluation"].values()), {})) if points else []
    keys = list(points[0]["settings"]) if points else []
    numeric = [key for key in keys if all(_is_number(p["settings"][key]) for p in points)]
    numeric = [key for key in numeric if len({p["settings"][key] for p in points}) > 1]
    if not texts or not numeric:
        return False
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(5.2 * len(texts), 3.8), layout="constrained")
    for axes, text in zip(figure.subplots(1, len(texts), squeeze=False)[0], texts, strict=True):
        if len(numeric) == 2 == len(keys):
            _heat_map(figure, axes, points, numeric, text)
        else:
            _curves(axes, points, numeric[0], [k for k in keys if k != numeric[0]], text)
        axes.set_title(f"perplexity, {text}")
    with atomic(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return True


def _curves(axes: Any, points: Sequence[Mapping[str, Any]], key: str, others: Sequence[str], text: str) -> None:
    groups: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        label = ", ".join(f"{_short(k, others)}={point['settings'][k]}" for k in others)
        groups.setdefault(label, []).append((point["settings"][key], _perplexity(point, text)))
    for label, pairs in groups.items():
        axes.plot(*zip(*sorted(pairs), strict=True), marker="o", label=label or "compressed")
    dense = points[0]["evaluation"].get("baseline", {}).get(text)
    if dense is not None:
        axes.axhline(dense["perplexity"], color="gray", linestyle="--", label="dense")
    values = [value for pairs in groups.values() for _, value in pairs]
    if max(values) > 10 * min(values):
        axes.set_yscale("log")
    axes.set_xlabel(key)
    axes.legend()


def _heat_map(figure: Any, axes: Any, points: Sequence[Mapping[str, Any]], keys: Sequence[str], text: str) -> None:
    from matplotlib.colors import LogNorm

    across, down = (sorted({p["settings"][k] for p in points}) for k in keys)
    grid = [[math.nan] * len(across) for _ in down]
    for point in points:
        x, y = (point["settings"][k] for k in keys)
        grid[down.index(y)][across.index(x)] = _perplexity(point, text)
    values = [_perplexity(point, text) for point in points]
    image = axes.imshow(grid, origin="lower", aspect="auto", norm=LogNorm() if max(values) > 10 * min(values) else None)
    axes.set_xticks(range(len(across)), [f"{v:g}" for v in across])
    axes.set_yticks(range(len(down)), [f"{v:g}" for v in down])
    axes.set_xlabel(keys[0])
    axes.set_ylabel(keys[1])
    figure.colorbar(image, ax=axes)


def _perplexity(point: Mapping[str, Any], text: str) -> float:
    return float(point["evaluation"]["compressed"][text]["perplexity"])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
