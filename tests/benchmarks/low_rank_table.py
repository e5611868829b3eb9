"""The README's low-rank table: perplexity at equal stored parameters, each lever added in turn.

    python tests/benchmarks/low_rank_table.py [--calibration FILE --sequences 384 --validation FILE --windows 170] [--out DIR]

Starts from recipes/compare_low_rank.yaml. All rows share one work folder, so each row's statistics and decompositions are
computed once for all ratios. Writes table.json and prints Markdown; in brackets the extra nll over dense as a fraction of
whitened SVD's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import Progress

from compress.checkpoint.files import write_json
from compress.fitting import run
from compress.packaged import recipes_folder
from compress.recipe import parse_recipe

FISHER = {"method": "feature_space", "importance": "fisher"}
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "weight SVD": ({"method": "weight_svd"}, {}),
    "whitened SVD (SVD-LLM)": ({"method": "whitened_svd"}, {}),
    "feature space": ({"method": "feature_space"}, {}),
    "+ loss weight": (FISHER, {}),
    "+ pivoted": ({**FISHER, "form": "pivoted"}, {}),
    "+ one budget": ({**FISHER, "form": "pivoted", "rank": "budget"}, {}),
    "+ error propagation": ({**FISHER, "form": "pivoted", "rank": "budget"}, {"propagate_error": True}),
    "+ block refinement": ({**FISHER, "form": "pivoted", "rank": "budget"}, {"propagate_error": True, "refine": True}),
    "+ fine-tuning": (
        {**FISHER, "form": "pivoted", "rank": "budget"},
        {"propagate_error": True, "refine": True, "finetune": True},
    ),
    "one budget without the loss weight": ({"method": "feature_space", "form": "pivoted", "rank": "budget"}, {}),
}


def recipe_of(base: dict[str, Any], row: str, keep: float, out: Path) -> dict[str, Any]:
    step, more = ROWS[row]
    rule = step.get("rank", "keep")
    steps = [{**{k: v for k, v in step.items() if k != "rank"}, "targets": base["steps"][0]["targets"], "rank": {rule: keep}}]
    levers = {"propagate_error": more.get("propagate_error", False)}
    levers |= {key: base[key] if more.get(key) else None for key in ("refine", "finetune")}
    return {**base, "steps": steps, **levers, "output": str(out / "points" / f"{list(ROWS).index(row)}-{keep}")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calibration")
    parser.add_argument("--sequences", type=int, help="windows to calibrate on")
    parser.add_argument("--finetune-steps", type=int)
    parser.add_argument("--validation")
    parser.add_argument("--windows", type=int)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.8, 0.6, 0.4])
    parser.add_argument("--rows", type=int, nargs="+", default=list(range(len(ROWS))))
    parser.add_argument("--out", type=Path, default=Path("runs/compare_low_rank"))
    options = parser.parse_args()
    base = yaml.safe_load((recipes_folder() / "compare_low_rank.yaml").read_text())
    if options.calibration:
        base["calibration"]["text"] = options.calibration
    base["calibration"]["sequences"] = options.sequences or base["calibration"]["sequences"]
    base["finetune"]["steps"] = options.finetune_steps or base["finetune"]["steps"]
    if options.validation:
        base["evaluation"]["texts"] = {"other": options.validation}
        base["evaluation"]["sequences"] = options.windows or 170
    (text,) = base["evaluation"]["texts"]
    file = options.out / "table.json"
    points: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    names = [list(ROWS)[i] for i in options.rows]
    with Progress(console=Console(stderr=True)) as bars:
        task = bars.add_task("fits", total=len(names) * len(options.keep))
        for name in names:
            for keep in options.keep:
                if f"{name}/{keep}" not in points:
                    folder = run.fit(parse_recipe(recipe_of(base, name, keep, options.out)), work=options.out / "work")
                    report = json.loads((folder / "report.json").read_text())
                    p, e = report["parameters"], report["evaluation"]
                    points[f"{name}/{keep}"] = {
                        "perplexity": e["compressed"][text]["perplexity"],
                        "nll": e["compressed"][text]["nll"],
                        "dense_nll": e["baseline"][text]["nll"],
                        "dense": e["baseline"][text]["perplexity"],
                        "kept": p["targeted_compressed"] / p["targeted_baseline"],
                    }
                    write_json(file, points)
                bars.advance(task)
    print(markdown(points, names, options.keep))


def markdown(points: dict[str, Any], names: list[str], keeps: list[float]) -> str:
    dense = next(iter(points.values()))["dense"]
    lines = [f"| dense {dense:.2f} | {' | '.join(f'keep {k}' for k in keeps)} |", "|---|" + "---|" * len(keeps)]
    for name in names:
        cells = []
        for keep in keeps:
            point, peer = points[f"{name}/{keep}"], points.get(f"whitened SVD (SVD-LLM)/{keep}")
            share = (point["nll"] - point["dense_nll"]) / (peer["nll"] - peer["dense_nll"]) if peer else float("nan")
            cells.append(f"{point['perplexity']:.2f} ({share:.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
