"""Seconds of each stage of a fit, as ratios to one plain forward over the same tokens.

    python tests/benchmarks/fit_cost.py [--model novella] [--sequences 128] [--budgets 0.8 0.6 0.4]

The forward is measured before and after every stage and the two are averaged, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from compress.compute import BATCH_TOKENS
from compress.fitting import run
from compress.fitting.assemble import load_variant
from compress.fitting.decide import first_pass_of, replacements_of
from compress.fitting.job import Job, prepare, source_hash_of, tokens_of
from compress.progress import silent
from compress.recipe import Recipe, parse_recipe


def recipe_of(options: argparse.Namespace, folder: Path, name: str, **changes: Any) -> Recipe:
    step = {"method": "feature_space", "targets": {"roles": "all"}, "form": "pivoted", "rank": {"budget": options.budgets[0]}}
    more = {key: changes.pop(key) for key in ("propagate_error", "refine") if key in changes}
    return parse_recipe(
        {
            "model": options.model,
            "calibration": {"text": "novella", "sequences": options.sequences, "length": 256},
            "steps": [{**step, **changes}],
            **more,
            "evaluation": {"texts": {}},
            "output": str(folder / name),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="novella")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.8, 0.6, 0.4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    rows: list[tuple[str, float, float]] = []
    job = prepare(recipe_of(options, folder, "plain"))
    tokens = tokens_of(job)
    whole = load_variant(job.model, [])

    def forward() -> float:
        started = time.perf_counter()
        with torch.no_grad():
            for part in tokens.split(max(1, BATCH_TOKENS // tokens.shape[1])):
                whole(input_ids=part, use_cache=False)
        return time.perf_counter() - started

    forward()

    def stage(name: str, work: Callable[[], Any], already: Callable[[], float] = lambda: 0.0) -> None:
        before = forward()
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started - already()
        rows.append((name, seconds, seconds / ((before + forward()) / 2)))

    def fits(of: Job) -> float:
        files = (unit.file(of.work, source_hash_of(of, tokens)).with_suffix(".json") for unit in of.units)
        return sum(json.loads(file.read_text())["seconds"] for file in files)

    for name, changes in (("statistics", {}), ("statistics with loss weight", {"importance": "fisher"})):
        mine = prepare(recipe_of(options, folder, name.replace(" ", "_"), **changes))
        source_hash = source_hash_of(mine, tokens)

        def first(mine: Job = mine, source_hash: str = source_hash) -> None:
            first_pass_of(mine, source_hash).run(mine.units, tokens, silent)

        def decompositions(mine: Job = mine) -> float:
            return fits(mine)

        stage(name, first, decompositions)
        rows.append(("  its decompositions", fits(mine), fits(mine) / forward()))
        for count in (1, len(options.budgets)):
            recipes = [recipe_of(options, folder, "x", **changes, rank={"budget": b}) for b in options.budgets[:count]]

            def ratios(recipes: list[Recipe] = recipes, work: Path = mine.work, source_hash: str = source_hash) -> None:
                for recipe in recipes:
                    other = prepare(recipe, work)
                    replacements_of(other, other.variants["compressed"], source_hash)

            stage(f"  ranks and factors of {count} budget{'s' * (count > 1)}", ratios)
    last = folder / "statistics_with_loss_weight.work"
    for name, levers in (
        ("error propagation", {"propagate_error": True}),
        ("error propagation and 20 refinement steps", {"propagate_error": True, "refine": {"steps": 20}}),
    ):
        second = prepare(recipe_of(options, folder, "second", importance="fisher", **levers), last)
        source_hash = source_hash_of(second, tokens)
        first_pass_of(second, source_hash).run(second.units, tokens, silent)  # leaves the gradients the pass reads

        def again(second: Job = second, source_hash: str = source_hash) -> None:
            run.second_pass(second, tokens, source_hash, silent)

        stage(name, again)
    table = Table("stage", "seconds", "plain forwards", title=f"{options.model}, {tokens.numel():,} tokens, one thread")
    for name, seconds, ratio in rows:
        table.add_row(name, f"{seconds:.2f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
