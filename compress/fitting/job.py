"""A checked recipe with its model and units, and what can be said of it before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compress import data
from compress.checkpoint.beside import beside
from compress.checkpoint.files import hash_json
from compress.checkpoint.locate import keep_apart, locate
from compress.checkpoint.writer import SHARD_BYTES
from compress.fitting.controls import control_steps
from compress.fitting.units import Unit, layers_of, units_of
from compress.methods.base import Preview
from compress.recipe import Recipe
from compress.stream.model import StreamedModel
from compress.stream.original import OnDisk, Original


@dataclass(frozen=True)
class Job:
    """A checked recipe, its model, and its units, by variant ("compressed" and the controls)."""

    recipe: Recipe
    model: StreamedModel
    variants: Mapping[str, list[Unit]]
    work: Path  # unit files, gradients, refined layers: runs that differ in late decisions only may share it
    original: Original

    @property
    def second_pass(self) -> bool:
        """Whether layers are mended once the first pass is done."""
        return self.recipe.propagate_error or self.recipe.refine is not None

    @property
    def units(self) -> list[Unit]:
        """Distinct units over all variants, in layer order."""
        seen = {(unit.group.name, unit.fingerprint("")): unit for units in self.variants.values() for unit in units}
        return sorted(seen.values(), key=lambda u: (u.group.layer, u.group.step, u.group.name))


def prepare(recipe: Recipe, work: Path | None = None, original: Original | None = None) -> Job:
    """Check a recipe against config.json and the safetensors headers; reads no weight. Raises ValueError or FileNotFoundError.

    `work` is where unit files go, by default `<output>.work`; several recipes may share one. `original` is the model to
    compress where it is not the folder that the recipe names.
    """
    if original is None:
        folder = locate(data.resolve_model(recipe.model.name), recipe.model.revision)
        keep_apart(recipe.output, folder)
        original = OnDisk(folder)
    model = StreamedModel(original.weights, original.config, compute=recipe.compute)
    architecture, layers = model.architecture, model.n_layers
    variants = {"compressed": units_of(recipe, architecture, layers)}
    for control in recipe.evaluation.controls:
        steps = control_steps(recipe.steps, control)
        variants[control] = units_of(recipe.model_copy(update={"steps": steps}), architecture, layers)
    job = Job(recipe, model, variants, work or beside(recipe.output, "", ".work"), original)
    # A basis over several layers would need inputs of layers that the second pass has not reached.
    if job.second_pass and any(len(layers_of(unit.group.modules, architecture)) > 1 for unit in variants["compressed"]):
        raise ValueError("propagate_error and refine work layer by layer; set layers_together: 1, or leave them out")
    # The previews compute shapes only, and refuse what is impossible before anything is calibrated.
    previews(job)
    return job


def previews(job: Job) -> list[tuple[Unit, Preview]]:
    """Rows of the dry run. Raises ValueError for options that are impossible at these shapes."""
    shapes = {job.model.full_name(name): shape for name, shape in job.model.shards.shapes.items()}
    rows = {
        name: [(u, p) for u in us for p in u.method.preview(u.group, shapes, job.model.architecture)]
        for name, us in job.variants.items()
    }
    return rows["compressed"]


def expected_peak_bytes(job: Job) -> int:
    """Estimate of what `fit` holds at most beyond the imports: the largest layer twice, its statistics, hidden states, a
    shard.
    """
    model, source = job.model, job.recipe.calibration
    per_layer = [0] * model.n_layers
    for name, shape in model.shards.shapes.items():
        rest = model.full_name(name).removeprefix(model.architecture.layers + ".")
        if rest.split(".")[0].isdigit():
            # 4 bytes a number: a resident layer is float32.
            per_layer[int(rest.split(".")[0])] += torch.Size(shape).numel() * 4
    # By layer 0, since layers have the same shapes: the widths of what its units read.
    widths = {
        need.input_of: shape[0 if model.architecture.conv1d else 1]
        for unit in job.units
        for need in unit.method.needs(unit.group, model.architecture).values()
        if (shape := model.shards.shapes.get(model.stored_name(f"{need.input_of}.weight"))) is not None
        and unit.group.layer == 0
    }
    # A scatter in float64.
    statistics = sum(8 * width * width for width in set(widths.values()))
    hidden = 4 * (source.sequences or 128) * source.length * int(model.config.hidden_size)
    # 8 bytes: the largest matrix in float64.
    largest = max((8 * torch.Size(s).numel() for s in model.shards.shapes.values() if len(s) == 2), default=0)
    total = sum(model.shards.bytes(n) for n in model.shards)
    streamed = 2 * max(per_layer) + statistics + hidden + 3 * largest // 2 + min(total, SHARD_BYTES)
    # Evaluation holds a whole model in float32, fine-tuning two of them.
    models = 2 if job.recipe.finetune is not None else 1 if job.recipe.evaluation.texts else 0
    return max(streamed, models * sum(4 * torch.Size(s).numel() for s in model.shards.shapes.values()))


def tokens_of(job: Job) -> Tensor:
    """The recipe's calibration tokens, (sequences, length). Raises ValueError for what the model has no place for."""
    data.check_length(job.recipe.calibration.length, job.model.config, "calibration")
    tokenizer = job.original.tokenizer()
    return data.check_tokens(
        data.calibration_tokens(job.recipe.calibration, tokenizer), job.model.config, tokenizer, "calibration"
    )


def source_hash_of(job: Job, tokens: Tensor | None = None) -> str:
    """What every unit depends on: the model's files, the calibration tokens, the seed, and the order that sums are made in."""
    tokens = tokens_of(job) if tokens is None else tokens
    return hash_json([job.model.shards.fingerprint(), data.token_hash(tokens), job.recipe.seed, job.recipe.compute.order()])
