"""The model card of a compressed checkpoint: what it is, how it was made, what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from compress.markdown import plain
from compress.recipe import Recipe


def model_card(recipe: Recipe, report: Mapping[str, Any]) -> str:
    """Markdown with the front matter the hub reads."""
    parameters = report["parameters"]
    kept = parameters["compressed"] / parameters["baseline"]
    lines = [
        "---",
        "library_name: transformers",
        f"base_model: {json.dumps(recipe.model.name)}",  # YAML of one line, whatever it holds
        "tags: [compress, low-rank, symbolic]",
        "---",
        "",
        f"# {plain(recipe.model.name)}, compressed",
        "",
        f"{parameters['compressed']:,} of {parameters['baseline']:,} parameters remain ({kept:.1%} of the whole model).",
        "Made by `compress fit` from `recipe.yaml` in this folder; `report.json` has one row per module.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM",
        "model = AutoModelForCausalLM.from_pretrained(path)  # where the package compress is installed",
        "model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)  # anywhere",
        "```",
    ]
    if front := report.get("begins_with", {}).get("calibration"):
        lines += ["", f"It was calibrated on windows that begin with `{' '.join(front)}`, as its tokenizer has it: keep that."]
    if report.get("evaluation"):
        texts = list(next(iter(report["evaluation"].values())))
        lines += ["", "## Perplexity", "", f"| variant | {' | '.join(map(plain, texts))} |", f"|---|{'---|' * len(texts)}"]
        for variant, values in report["evaluation"].items():
            cells = " | ".join(format(values[text]["perplexity"], ".3f") for text in texts)
            lines.append(f"| {plain(variant)} | {cells} |")
    steps = "\n".join(f"- `{step.method}`: {step.options.reference}" for step in recipe.steps)
    return "\n".join([*lines, "", "## Methods", "", steps, ""])
