"""The README's table of MLP surrogates: layers 1, 3 and 4 of novella replaced, every control at equal multiply-adds.

    python tests/benchmarks/surrogate_table.py --output runs/surrogates
    python tests/benchmarks/surrogate_table.py --output runs/other --calibration FILE --validation FILE --windows 170

Every row is a checkpoint made by `compress.fit`; finished rows are taken over when it is run again. Writes table.json and
prints Markdown: extra nll over the dense model, seconds of fitting, multiply-adds per token of the three MLPs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from compress.checkpoint.files import write_json
from compress.data import resolve_model
from compress.evaluating.cost import account
from compress.fitting import run
from compress.recipe import parse_recipe

LAYERS = [1, 3, 4]
SIZES = (("gradient", 32, 8), ("neurons", 32, 16), ("gradient", 32, 32), ("neurons", 64, 32))  # latents of ours
AFFINE = 16  # rank of its affine map
CALIBRATION = 384  # windows
PUBLISHED = {"inputs": 32, "outputs": 8}


class Table:
    """Rows of one calibration and one validation text."""

    def __init__(self, output: Path, calibration: str, validation: str, windows: int, steps: int) -> None:
        self.output, self.calibration, self.validation = output, calibration, validation
        self.windows, self.steps = windows, steps
        self.rows: list[dict[str, Any]] = []
        dense = account(Path(resolve_model("novella"))).multiply_adds
        config = json.loads((Path(resolve_model("novella")) / "config.json").read_text())
        self.mlp = len(LAYERS) * 3 * config["hidden_size"] * config["intermediate_size"]
        self.rest = dense.linears + dense.programs - self.mlp

    def fit(self, name: str, step: dict[str, Any], *, finish: bool = False, controls: bool = False) -> list[dict[str, Any]]:
        """Add a row and give the report's modules; with `controls`, the dense model and the constant controls before it."""
        folder = self.output / name.replace(" ", "_").replace("/", "-").replace(",", "")
        if not (folder / "config.json").is_file():
            run.fit(self._recipe(folder, step, finish, controls), work=self.output / "work")
        report = json.loads((folder / "report.json").read_text())
        nll = {variant: texts["text"]["nll"] for variant, texts in report["evaluation"].items()}
        if controls:
            self._add("dense", 0.0, nll["baseline"], 0.0, self.mlp)
            for control in ("identity", "zero", "mean"):
                self._add(control, nll[control] - nll["baseline"], nll[control], 0.0, 0)
        cost = account(folder).multiply_adds
        seconds = sum(row.get("seconds", 0.0) for row in report["modules"])
        extra = nll["compressed"] - nll["baseline"]
        self._add(name, extra, nll["compressed"], seconds, cost.linears + cost.programs - self.rest)
        return report["modules"]

    def _add(self, name: str, extra: float, nll: float, seconds: float, multiply_adds: int) -> None:
        self.rows.append({"row": name, "extra_nll": extra, "nll": nll, "fit_seconds": seconds, "multiply_adds": multiply_adds})
        print(f"{name}: {extra:+.4f} nats, {multiply_adds} multiply-adds, {seconds:.0f} s", flush=True)

    def _recipe(self, folder: Path, step: dict[str, Any], finish: bool, controls: bool) -> Any:
        text = {"text": self.validation, "length": 256, "sequences": self.windows}
        data: dict[str, Any] = {
            "model": "novella",
            "calibration": {"text": self.calibration, "sequences": CALIBRATION, "length": 256},
            "steps": [{"layers": LAYERS, **step}],
            "evaluation": {"texts": {"text": text}, "controls": ["identity", "zero", "mean"] if controls else []},
            "output": str(folder),
        }
        if finish:
            data |= {"refine": {"steps": self.steps}, "finetune": {"steps": self.steps}}
        return parse_recipe(data)

    def markdown(self) -> str:
        lines = ["| layers 1, 3, 4 replaced by | extra nll | multiply-adds per token | fit, seconds |", "|---|---|---|---|"]
        lines += [
            f"| {r['row']} | {r['extra_nll']:+.3f} | {r['multiply_adds']:,} | {r['fit_seconds']:.0f} |" for r in self.rows
        ]
        return "\n".join(lines)


def fill(table: Table, operon: int, sizes: int) -> None:
    """All rows; the controls of ours follow it, at the rank or channel count that costs at least as much."""
    sparse = {"method": "symbolic_mlp", "latents": PUBLISHED, "engine": {"name": "sparse"}}
    table.fit("published I32/O8 sparse", sparse, controls=True)
    table.fit("PCA only I32/O8", {"method": "mlp_bottleneck", **PUBLISHED})
    table.fit("affine through the same latents I32/O8", {"method": "affine_mlp", "through": PUBLISHED})
    if operon:
        table.fit("published I32/O8 operon", {**sparse, "engine": {"name": "operon", "evaluations": operon}})
    for position, (kind, inputs, outputs) in enumerate(SIZES[:sizes]):
        latents = {"kind": kind, "inputs": inputs, "outputs": outputs}
        ours = {"method": "residual_mlp", "latents": latents, "affine": AFFINE, "samples": 16384}
        name = f"{kind} I{inputs}/O{outputs}"
        equal = [row["equal_cost"] for row in table.fit(f"ours {name}", ours)]
        rank, channels = (max(cost[key] for cost in equal) for key in ("rank", "channels"))
        controls = {
            f"affine of rank {rank}": {"method": "affine_mlp", "rank": rank},
            f"{channels} channels": {"method": "prune_channels", "channels": channels, "importance": "fisher"},
        }
        for control, step in controls.items():
            table.fit(f"{control}, cost of {name}", step)
        if kind == "neurons" and table.steps:
            rows = {"published I32/O8 sparse": sparse} if position < 2 else {}
            rows[f"ours {name}"] = ours
            for label, step in {**rows, **{f"{c}, cost of {name}": s for c, s in controls.items()}}.items():
                table.fit(f"{label}, refined and fine-tuned", step, finish=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--calibration", default="novella", help="a text file, or novella: the packaged text")
    parser.add_argument("--validation", default="novella")
    parser.add_argument("--windows", type=int, default=170, help="validation windows of 256 tokens, from the beginning")
    parser.add_argument("--operon", type=int, default=20_000, help="evaluations per output of the tree search; 0 leaves it out")
    parser.add_argument("--steps", type=int, default=200, help="of block refinement, then fine-tuning; 0 leaves those rows out")
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many sizes of ours")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    table = Table(given.output, given.calibration, given.validation, given.windows, given.steps)
    fill(table, given.operon, given.sizes)
    write_json(given.output / "table.json", {"arguments": {k: str(v) for k, v in vars(given).items()}, "rows": table.rows})
    print(table.markdown())


if __name__ == "__main__":
    main()
