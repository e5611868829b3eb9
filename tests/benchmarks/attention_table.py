"""The README's table of crystallized attention: perplexity, and how much of what top1 loses each rank recovers.

    python tests/benchmarks/attention_table.py                                          # packaged model and text
    python tests/benchmarks/attention_table.py --calibration FILE --validation FILE     # and another text

Rows: top1, full (must equal the baseline), r = 1 2 4 8 16 32, for bases from the residuals alone (published), from what the
output projection makes of them, and from what the loss feels of that. Finished points are kept in OUT/table.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from compress.checkpoint.files import write_json
from compress.fitting import run
from compress.recipe import parse_recipe

RANKS = (1, 2, 4, 8, 16, 32)
IMPORTANCES = ("none", "output", "fisher")


def points_of(layers: list[int]) -> dict[str, dict[str, Any]]:
    step = {"method": "crystallized_attention", "layers": layers}
    points = {mode: {**step, "mode": mode} for mode in ("top1", "full")}
    return points | {f"{i} {r}": {**step, "importance": i, "rank": r} for i in IMPORTANCES for r in RANKS}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="novella")
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--calibration", default="novella")
    parser.add_argument("--validation")
    parser.add_argument("--windows", type=int, default=170)
    parser.add_argument("--out", type=Path, default=Path("runs/crystallized_table"))
    options = parser.parse_args()
    texts = {"own": "novella"} | ({"other": options.validation} if options.validation else {})
    base = {
        "model": options.model,
        "calibration": {"text": options.calibration, "sequences": 128, "length": 256},
        "evaluation": {"texts": texts, "length": 256, "sequences": options.windows},
    }
    file = options.out / "table.json"
    done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    points = points_of(options.layers)
    with Progress(console=Console(stderr=True)) as bars:
        for name in bars.track(points, description="fits"):
            if name not in done:
                output = options.out / "points" / name.replace(" ", "-")
                recipe = parse_recipe({**base, "steps": [points[name]], "output": str(output)})
                report = json.loads((run.fit(recipe, work=options.out / "work") / "report.json").read_text())
                spectra = {row["layer"]: row["residual"] for row in report["modules"]}
                done[name] = {"evaluation": report["evaluation"], "spectra": spectra}
                write_json(file, done)
    for text in texts:
        print(table(done, text), end="\n\n")
    print(spectra_table(done["full"]["spectra"]))


def table(done: dict[str, Any], text: str) -> str:
    def perplexity(name: str, variant: str = "compressed") -> float:
        return done[name]["evaluation"][variant][text]["perplexity"]

    dense, top1 = perplexity("full", "baseline"), perplexity("top1")
    lines = [f"| {text}: dense {dense:.3f} | top1 | full | {' | '.join(f'r = {r}' for r in RANKS)} | r for 90 % |"]
    lines.append("|---|" + "---|" * (len(RANKS) + 3))
    for importance in IMPORTANCES:
        values = [perplexity(f"{importance} {r}") for r in RANKS]
        recovered = [100 * (top1 - v) / (top1 - dense) for v in values]
        enough = next((str(r) for r, share in zip(RANKS, recovered, strict=True) if share >= 90), "none")
        cells = [f"{v:.2f} ({share:.0f} %)" for v, share in zip(values, recovered, strict=True)]
        lines.append(f"| {importance} | {top1:.2f} | {perplexity('full'):.3f} | {' | '.join(cells)} | {enough} |")
    return "\n".join(lines)


def spectra_table(spectra: dict[str, Any]) -> str:
    """Variance of the residual in its r leading dimensions, in percent, head by head, and the dimensions that hold 90 %."""
    ranks = list(next(iter(spectra.values()))["variance"])
    lines = [f"| layer | {' | '.join(f'r = {r}' for r in ranks)} | dimensions for 90 % |", "|---|" + "---|" * (len(ranks) + 1)]
    for layer, row in spectra.items():
        cells = [", ".join(f"{100 * v:.0f}" for v in row["variance"][r]) for r in ranks]
        lines.append(f"| {layer} | {' | '.join(cells)} | {', '.join(map(str, row['dimensions_for_90']))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
