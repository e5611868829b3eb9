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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.checkpoint.beside import beside
from compress.checkpoint.files import read_json, write_json
from compress.checkpoint.lock import locked
from compress.checkpoint.manifest import Manifest
from compress.checkpoint.work import open_work
from compress.fitting import run
from compress.fitting.calibrate import FirstPass
from compress.fitting.job import Job, prepare, source_hash_of, tokens_of
from compress.fitting.write import check_output
from compress.progress import Progress, silent
from compress.reading import yaml_text
from compress.reading.overrides import set_value
from compress.recipe import Recipe, parse_recipe, read_yaml
from compress.reporting import plots

TABLE, PICTURE = "sweep.json", "sweep.png"

# The keys of a rank rule whose values are single numbers, so that a list can only mean one checkpoint for each.
RANK_LISTS = ("rank", "keep", "budget", "explained_variance")


MOST_POINTS = 1000  # of one sweep


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
    Raises ValueError for settings that vary nothing or do not make a recipe.
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
    """("key", [values]) of `key=a,b,c`; commas inside brackets belong to a value. Raises ValueError for anything else.

    >>> parse_setting("steps.0.rank.keep=0.8,0.6")
    ('steps.0.rank.keep', [0.8, 0.6])
    """
    key, equals, text = setting.partition("=")
    try:
        # YAML splits at commas and types the values in one go, and leaves those inside brackets together.
        values = yaml_text.loads(f"[{text}]", setting) if equals and key else None
    except ValueError:
        values = None
    if not values:
        raise ValueError(f"--set {setting!r}: write dotted.key=a,b,c, such as steps.0.rank.keep=0.8,0.6,0.4")
    return key, values


def rank_lists(plain: Any) -> dict[str, list[Any]]:
    """{dotted key: values} of the rank rules in plain recipe data that hold a list instead of one value.

    Raises ValueError for an empty list; what else is wrong with the data is left to the recipe's own check.
    """
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
    """The points of a recipe whose rank rules hold lists, named by their values alone; none where no rule does.

    `overrides` are `key=value` as for one recipe. Raises ValueError where they or the lists make no recipe.
    """
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
    """The recipes of all combinations, checked; folders are named `key=value,…`, or by the values alone where `bare`.

    Raises ValueError, naming `origin`, for a combination that is no recipe, and for two that would share a folder.
    """
    if (count := math.prod(len(values) for values in axes.values())) > MOST_POINTS:
        raise ValueError(f"{count:,} points, a checkpoint each; at most {MOST_POINTS:,}: give fewer values")
    points = []
    # What holds for every point distinguishes none; a lone point still needs a name.
    varied = [key for key, values in axes.items() if len(values) > 1] or list(axes)
    for combination in itertools.product(*axes.values()):
        settings = dict(zip(axes, combination, strict=True))
        made = copy.deepcopy(dict(plain)) if isinstance(plain, Mapping) else plain
        for key, value in settings.items():
            set_value(made, f"{key}={json.dumps(value)}")  # JSON is YAML: the value is read back as it was
        recipe = parse_recipe(made, origin=origin)
        shown = {key: settings[key] for key in varied}
        name = ",".join(_slug(v) if bare else f"{_short(key, varied)}={_slug(v)}" for key, v in shown.items())
        points.append(Point(shown, name, recipe.model_copy(update={"output": recipe.output / name})))
    # Values that differ can make one name, such as a/b and a_b; the second point would replace the first.
    twice = [p.name for i, p in enumerate(points) if p.name in {q.name for q in points[:i]}]
    if twice:
        raise ValueError(f"two points of the sweep are named {twice[0]!r}; give each value once")
    return points


def fit_points(points: Sequence[Point], progress: Progress = silent, *, fresh: bool = False) -> list[dict[str, Any]]:
    """Fit every point that has no checkpoint yet, all statistics first, in one pass per distinct model and calibration text.

    Returns the points of sweep.json, in the order given, as `sweep` does. Raises what fitting one recipe raises.
    """
    # The points of a sweep are folders side by side.
    root = points[0].recipe.output.parent
    work = beside(root, "", ".work")
    jobs = [prepare(point.recipe, work) for point in points]
    with locked(root):
        folder = Manifest(root, "sweep")
        folder.check([TABLE, PICTURE])
        for job in jobs:
            check_output(job)
        open_work(root, work, fresh)
        if fresh:
            folder.remove(TABLE, PICTURE)
        return _fit_points(points, jobs, folder, progress)


def _fit_points(points: Sequence[Point], jobs: Sequence[Job], folder: Manifest, progress: Progress) -> list[dict[str, Any]]:
    tokens: dict[Any, Any] = {}
    source_hashes = []
    for job in jobs:
        # Points that share a model and a text share its tokens.
        key = (job.recipe.model, job.recipe.calibration)
        tokens.setdefault(key, tokens_of(job) if key not in tokens else None)
        source_hashes.append(source_hash_of(job, tokens[key]))
    known = {row["name"]: row for row in (read_json(folder.folder / TABLE) or {}).get("points", [])}
    rows = {
        point.name: known[point.name]
        for point, source_hash in zip(points, source_hashes, strict=True)
        if point.name in known and _is_of(known[point.name], point, source_hash)
    }
    waiting = [i for i, point in enumerate(points) if point.name not in rows]
    # Jobs of one source hash read the same model and tokens, so that one pass serves all of them.
    for source_hash in dict.fromkeys(source_hashes[i] for i in waiting):
        members = [jobs[i] for i in waiting if source_hashes[i] == source_hash]
        _fit_units(members, source_hash, tokens[members[0].recipe.model, members[0].recipe.calibration], progress)
    tick = progress("points", len(waiting))
    for i in waiting:
        run.fit(points[i].recipe, work=jobs[i].work)
        rows[points[i].name] = _row(points[i], source_hashes[i])
        _write(folder, points, rows)  # after each point, so that one that is killed loses no other
        tick()
    done = _write(folder, points, rows)
    with folder.files(PICTURE) as (picture,):
        plot(done, picture)
    return done


def _fit_units(jobs: Sequence[Job], source_hash: str, tokens: Tensor, progress: Progress) -> None:
    """The units of several jobs over the same model and tokens, in one pass."""
    # Points whose difference fitting does not read have the same unit.
    units = {(unit.group.name, unit.fingerprint(source_hash)): unit for job in jobs for unit in job.units}
    ordered = sorted(units.values(), key=lambda u: (u.group.layer, u.group.name))
    # The pass is shared: where one job will read the gradient moments again, it keeps them.
    keep_gradients = any(job.second_pass for job in jobs)
    FirstPass(jobs[0].model, jobs[0].work, source_hash, jobs[0].recipe.seed, keep_gradients).run(ordered, tokens, progress)


def _is_of(row: Mapping[str, Any], point: Point, source_hash: str) -> bool:
    """Whether a row and its folder still are what this point would make."""
    output = point.recipe.output
    recipe = output / "recipe.yaml"
    # The material says the inputs are the same, recipe.yaml that the options are; the files, that nobody took the folder away.
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


def _write(folder: Manifest, points: Sequence[Point], rows: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    done = [rows[point.name] for point in points if point.name in rows]
    with folder.files(TABLE) as (path,):
        write_json(path, {"format": 1, "points": done})
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
    # A value may hold slashes, spaces or brackets, which have no place in the name of a folder.
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return re.sub(r"[^\w.+-]+", "_", text).strip("_") or "_"


def plot(points: Sequence[Mapping[str, Any]], file: Path) -> bool:
    """Draw the points of a sweep.json into the PNG file, a panel per text; False, and no file, where there is nothing to draw.

    Perplexity over one numeric key as curves, one for each value of the further keys; over two keys, both numeric, as heat
    maps. Scales are logarithmic where perplexities differ more than tenfold.
    """
    texts = list(next(iter(points[0]["evaluation"].values()), {})) if points else []
    keys = list(points[0]["settings"]) if points else []
    numeric = [key for key in keys if all(_is_number(p["settings"][key]) for p in points)]
    numeric = [key for key in numeric if len({p["settings"][key] for p in points}) > 1]
    if not texts or not numeric:
        return False
    # A grid has two axes and no place for a third key.
    draw = _heat_map if len(numeric) == 2 == len(keys) else _curves
    plots.panels([draw(points, numeric, text) for text in texts], file)
    return True


def _curves(points: Sequence[Mapping[str, Any]], numeric: Sequence[str], text: str) -> plots.Curves:
    key, *_ = numeric
    others = [other for other in points[0]["settings"] if other != key]
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        name = ", ".join(f"{_short(other, others)}={point['settings'][other]}" for other in others) or "compressed"
        curves.setdefault(name, []).append((point["settings"][key], _perplexity(point, text)))
    return plots.Curves(curves, key, "perplexity", f"perplexity, {text}", _baseline(points, text))


def _heat_map(points: Sequence[Mapping[str, Any]], numeric: Sequence[str], text: str) -> plots.HeatMap:
    across, up = numeric
    values = {(p["settings"][across], p["settings"][up]): _perplexity(p, text) for p in points}
    baseline = _baseline(points, text)
    # A grid has no line for the baseline, so its title says it.
    title = f"perplexity, {text}" + ("" if baseline is None else f" (baseline {baseline:.2f})")
    return plots.HeatMap(values, across, up, title)


def _perplexity(point: Mapping[str, Any], text: str) -> float:
    return float(point["evaluation"]["compressed"][text]["perplexity"])


def _baseline(points: Sequence[Mapping[str, Any]], text: str) -> float | None:
    found = points[0]["evaluation"].get("baseline", {}).get(text)
    return None if found is None else float(found["perplexity"])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)  # Python counts True as 1
