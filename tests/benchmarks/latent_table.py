"""The README's table of latent caches: perplexity against bytes of cache per token, beside the forms it has to beat.

    python tests/benchmarks/latent_table.py                                          # packaged model and text
    python tests/benchmarks/latent_table.py --calibration FILE --validation FILE     # and another text

Rows: (a) every head of K and of V truncated by itself, without data; (b) one whitened SVD of [K; V]; then (b) with the loss
weight and a mean, with one budget for all layers, with block refinement. Bytes are those of the tensors of a live float32
cache. In brackets the extra nll over dense as a fraction of (b)'s. Finished points are kept in OUT/table.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from compress.checkpoint.files import write_json
from compress.data import resolve_model
from compress.evaluating.cost import cache_bytes_per_token
from compress.fitting import run
from compress.loading.quantizer import from_pretrained
from compress.recipe import parse_recipe

FRACTIONS = (1.0, 0.75, 0.5, 0.375, 0.25)
PEER = "(b) whitened joint SVD"
LEVERS: dict[str, dict[str, Any]] = {
    "(a) each head truncated": {"share": "head", "metric": "weight"},
    "whitened, K and V apart": {"share": "separate", "metric": "uncentred"},
    PEER: {"metric": "uncentred"},
    "+ loss weight, mean": {"importance": "fisher"},
    "+ one budget": {"importance": "fisher", "allocation": "global"},
    "+ block refinement": {"importance": "fisher", "allocation": "global", "refine": True},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="novella")
    parser.add_argument("--calibration", default="novella")
    parser.add_argument("--validation")
    parser.add_argument("--windows", type=int, default=170)
    parser.add_argument("--sequences", type=int, default=384)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--fractions", type=float, nargs="+", default=list(FRACTIONS))
    parser.add_argument("--refine-at", type=float, nargs="*", default=[0.5, 0.25], help="refinement takes minutes a point")
    parser.add_argument("--out", type=Path, default=Path("runs/latent_table"))
    options = parser.parse_args()
    texts = {"other": options.validation} if options.validation else {"own": "novella"}
    base = {
        "model": options.model,
        "calibration": {"text": options.calibration, "sequences": options.sequences, "length": 256},
        "evaluation": {"texts": texts, "length": 256, "sequences": options.windows},
    }
    file = options.out / "table.json"
    done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    with Progress(console=Console(stderr=True)) as bars:
        for name, fraction in bars.track(
            [(n, f) for n in LEVERS for f in options.fractions if _wanted(n, f, options.refine_at)], description="fits"
        ):
            if f"{name}/{fraction}" not in done:
                lever = dict(LEVERS[name])
                refine = {"steps": options.steps, "lr": 0.002, "batch": 16} if lever.pop("refine", False) else None
                step = {"method": "latent_kv", "cache": fraction, **lever}
                output = options.out / "points" / f"{list(LEVERS).index(name)}-{fraction}"
                recipe = parse_recipe({**base, "steps": [step], "refine": refine, "output": str(output)})
                folder = run.fit(recipe, work=options.out / "work")
                done[f"{name}/{fraction}"] = {
                    **json.loads((folder / "report.json").read_text())["evaluation"],
                    "bytes": live_bytes(folder),
                }
                write_json(file, done)
    (text,) = texts
    print(table(done, text, options.fractions, live_bytes(Path(resolve_model(options.model)))))


def _wanted(name: str, fraction: float, refine_at: list[float]) -> bool:
    return fraction in refine_at or not LEVERS[name].get("refine")


def live_bytes(folder: Path) -> int:
    """Bytes per token of a live float32 cache."""
    model = from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return cache_bytes_per_token(lambda ids: model(ids, use_cache=True).past_key_values)


def table(done: dict[str, Any], text: str, fractions: list[float], dense_bytes: int) -> str:
    dense = next(iter(done.values()))["baseline"][text]
    heads = [f"{f:.1%} ({dense_bytes * f:.0f} B)" for f in fractions]
    lines = [f"| {text}: dense {dense['perplexity']:.2f}, {dense_bytes} B | {' | '.join(heads)} |"]
    lines.append("|---|" + "---|" * len(fractions))
    for name in LEVERS:
        cells = []
        for fraction in fractions:
            if f"{name}/{fraction}" not in done:
                cells.append("")
                continue
            point, peer = done[f"{name}/{fraction}"], done[f"{PEER}/{fraction}"]
            extra, theirs = (p["compressed"][text]["nll"] - dense["nll"] for p in (point, peer))
            share = f" ({extra / theirs:.2f})" if theirs > 1e-4 else ""
            cells.append(f"{point['compressed'][text]['perplexity']:.2f}{share} at {point['bytes']} B")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
