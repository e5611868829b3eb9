"""One recipe at many values: the product of the lists, every point a checkpoint, statistics and decompositions computed once.

    --set a=1,2 --set b=x,y ──► 4 recipes ──one first pass over all their units──► 4 checkpoints ──► sweep.json, sweep.png

The points share one work folder. Unit files carry a fingerprint of every option that fitting reads, so points that differ in a
rank share the decomposition, and points that differ in the method at least share the forward (and backward) pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.checkpoint.beside import beside
from compress.checkpoint.files import hash_file, hash_json, read_json, write_json
from compress.checkpoint.lock import locked
from compress.checkpoint.manifest import Manifest
from compress.checkpoint.work import open_work
from compress.fitting import run
from compress.fitting.calibrate import FirstPass
from compress.fitting.job import Job, prepare, source_hash_of
from compress.fitting.look_ahead import look_ahead
from compress.fitting.write import check_output
from compress.progress import Progress, silent
from compress.reporting import plots
from compress.searching.points import Origin, Point, Settings, points_of_settings, short_key

TABLE, PICTURE = "sweep.json", "sweep.png"


def sweep(recipe: Origin, settings: Settings, progress: Progress = silent, *, fresh: bool = False) -> list[dict[str, Any]]:
    """Fit a recipe (a file, or plain data) at the product of `key=a,b,c` settings; a key with one value holds for every point.

    Writes `<output>/sweep.json` and, where a key is numeric, `<output>/sweep.png`; each point's checkpoint lies in a folder
    named by its values. Finished points of an earlier run are taken over unless `fresh`. Returns the points of sweep.json.
    Raises ValueError for settings that vary nothing or do not make a recipe.
    """
    return fit_points(points_of_settings(recipe, settings), progress, fresh=fresh)


def fit_points(points: Sequence[Point], progress: Progress = silent, *, fresh: bool = False) -> list[dict[str, Any]]:
    """Fit every point that has no checkpoint yet, all statistics first, in one pass per distinct model and calibration text.

    Returns the points of sweep.json, in the order given, as `sweep` does. Raises what fitting one recipe raises.
    """
    # The points of a sweep are folders side by side.
    root = points[0].recipe.output.parent
    work = beside(root, "", ".work")
    jobs = [prepare(point.recipe, work) for point in points]
    tokens: dict[Any, Tensor] = {}
    for job in jobs:
        if (key := _inputs(job)) not in tokens:  # points that share a model and its texts are looked at once
            tokens[key] = look_ahead(job).calibration
    with locked(root):
        folder = Manifest(root, "sweep")
        folder.check([TABLE, PICTURE])
        for job in jobs:
            check_output(job)
        open_work(root, work, fresh)
        if fresh:
            folder.remove(TABLE, PICTURE)
        return _fit_points(points, jobs, [tokens[_inputs(job)] for job in jobs], folder, progress)


def _inputs(job: Job) -> str:
    """What the texts of a point depend on."""
    recipe = job.recipe
    return hash_json([part.model_dump(mode="json") for part in (recipe.model, recipe.calibration, recipe.evaluation)])


def _fit_points(
    points: Sequence[Point], jobs: Sequence[Job], tokens: Sequence[Tensor], folder: Manifest, progress: Progress
) -> list[dict[str, Any]]:
    source_hashes = [source_hash_of(job, own) for job, own in zip(jobs, tokens, strict=True)]
    asked = [_asked(job, source_hash) for job, source_hash in zip(jobs, source_hashes, strict=True)]
    known = {row["name"]: row for row in (read_json(folder.folder / TABLE) or {}).get("points", [])}
    rows = {
        point.name: known[point.name]
        for point, wanted in zip(points, asked, strict=True)
        if point.name in known and _is_of(known[point.name], point, wanted)
    }
    waiting = [i for i, point in enumerate(points) if point.name not in rows]
    # Jobs of one source hash read the same model and tokens, so that one pass serves all of them.
    for source_hash in dict.fromkeys(source_hashes[i] for i in waiting):
        members = [i for i in waiting if source_hashes[i] == source_hash]
        _fit_units([jobs[i] for i in members], source_hash, tokens[members[0]], progress)
    tick = progress("points", len(waiting))
    for i in waiting:
        run.fit(points[i].recipe, work=jobs[i].work)
        rows[points[i].name] = _row(points[i], asked[i])
        _write(folder, points, rows)  # after each point, so that one that is killed loses no other
        tick()
    done = _write(folder, points, rows)
    folder.remove(PICTURE)  # there may be nothing to draw this time
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


def _asked(job: Job, source_hash: str) -> str:
    """Hash of all that a point's checkpoint depends on: its inputs, its recipe, and what files that it names hold."""
    units = [unit.method.model_dump(mode="json") for unit in job.variants["compressed"]]
    return hash_json([source_hash, job.recipe.to_yaml(), units])


def _is_of(row: Mapping[str, Any], point: Point, asked: str) -> bool:
    """Whether a row and its folder still are what this point would make, and nobody wrote another checkpoint there."""
    recipe, config = point.recipe.output / "recipe.yaml", point.recipe.output / "config.json"
    return row.get("asked") == asked and config.is_file() and recipe.is_file() and row.get("written") == hash_file(recipe)


def _row(point: Point, asked: str) -> dict[str, Any]:
    report = json.loads((point.recipe.output / "report.json").read_text(encoding="utf-8"))
    modules = [m for m in report["modules"] if m.get("relative_error") is not None]
    return {
        "settings": dict(point.settings),
        "name": point.name,
        "asked": asked,
        "written": hash_file(point.recipe.output / "recipe.yaml"),  # an expression that is picked by hand changes it
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
        name = ", ".join(f"{short_key(other, others)}={point['settings'][other]}" for other in others) or "compressed"
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
