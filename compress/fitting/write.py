"""The checkpoint: weights, plan, report, model card, code for elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from compress.beginning import begins_with
from compress.checkpoint.files import read_json, write_json, write_text
from compress.checkpoint.manifest import Manifest
from compress.checkpoint.writer import write_shards
from compress.fitting.assemble import kept_names, plan_of, storage_dtype, tensors_of
from compress.fitting.job import Job
from compress.fitting.model_card import model_card
from compress.fitting.picks import FILE as PICKS
from compress.fitting.picks import Pick
from compress.loading.remote_code import FILE as REMOTE_CODE
from compress.loading.remote_code import write_remote_code
from compress.methods.base import Replacement
from compress.progress import Progress

PART = "checkpoint"  # of the output's manifest
EDITABLE = ("README.md",)  # a model card is there to be edited: it is kept where it was
_FIXED = ("recipe.yaml", "report.json", PICKS, *EDITABLE, "config.json", REMOTE_CODE)


def check_output(job: Job) -> None:
    """Raises FileExistsError naming a file of the user's where the checkpoint would be written."""
    output = job.recipe.output.expanduser()
    with TemporaryDirectory() as folder:
        job.original.write_beside(Path(folder))
        beside = sorted(file.name for file in Path(folder).iterdir())
    # Of any number of shards: whoever loads the folder takes the first kind of weights that it finds.
    weights = sorted(file.name for file in output.glob("model*.safetensors*")) if output.is_dir() else []
    Manifest(output, PART).check([*_FIXED, *beside, *weights], EDITABLE)


def assemble(
    job: Job, replacements: Sequence[Replacement], source_hash: str, token_hash: str, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Write the weights into the empty `folder`; return the report's part that describes them."""
    model = job.model
    tick = progress("write checkpoint", 1)
    element = torch.empty(0, dtype=storage_dtype(model)).element_size()
    # Needed before the first tensor: it says whether there will be one file or several.
    ours = sum(
        t.numel() * (element if t.dtype == torch.float64 else t.element_size())
        for r in replacements
        for t in r.tensors.values()
    )
    kept = kept_names(model, replacements)
    total = ours + sum(model.shards.bytes(name) for name in kept)
    files = write_shards(folder, tensors_of(model, replacements), total)
    tick()
    before = sum(torch.Size(s).numel() for s in model.shards.shapes.values())
    after = sum(torch.Size(model.shards.shapes[n]).numel() for n in kept) + sum(
        t.numel() for r in replacements for t in r.tensors.values()
    )
    rows = []
    for unit, replacement in zip(job.variants["compressed"], replacements, strict=True):
        timing = read_json(unit.file(job.work, source_hash).with_suffix(".json")) or {}
        rows += [{"layer": unit.group.layer, "method": unit.step.method, **row, **timing} for row in replacement.report]
    targeted = [(row["parameters_before"], row["parameters"]) for row in rows if "parameters_before" in row]
    return {
        "format": 1,
        "calibration": {"tokens_sha256": token_hash},
        "begins_with": _beginnings(job),
        "compute": {"device": str(model.device), **model.compute.order()},
        "parameters": {
            "baseline": before,
            "compressed": after,
            "targeted_baseline": sum(b for b, _ in targeted),
            "targeted_compressed": sum(a for _, a in targeted),
        },
        "modules": rows,
        "files": files,
    }


def _beginnings(job: Job) -> dict[str, Any]:
    """What every window of a text began with."""
    tokenizer, evaluation = job.original.tokenizer(), job.recipe.evaluation
    return {
        "calibration": begins_with(tokenizer, job.recipe.calibration.bos),
        "evaluation": {name: begins_with(tokenizer, evaluation.source(name).bos) for name in evaluation.texts},
    }


def finish(
    job: Job, replacements: Sequence[Replacement], report: Mapping[str, Any], picks: Sequence[Pick], folder: Path
) -> None:
    """Everything beside the weights."""
    job.original.write_beside(folder)
    write_text(folder / "recipe.yaml", job.recipe.to_yaml())
    write_json(folder / "report.json", report)
    write_text(folder / "README.md", model_card(job.recipe, report))
    if picks:
        write_json(folder / PICKS, [pick.model_dump() for pick in picks])
    config = job.original.plain_config()
    config["quantization_config"] = {"quant_method": "compress", **plan_of(replacements).to_json()}
    write_json(folder / "config.json", config, sort_keys=True)
    write_remote_code(folder)
