"""recipe → checkpoint. Read top to bottom: check, stream and fit unit by unit, decide and assemble, evaluate.

Every unit is one file under `<output>/work/units`, written atomically: kill the process at any moment, run again, and it
continues and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress import checkpoint, data
from compress.assembly import kept_names, load_variant, plan_of, storage_dtype, stored_tensors, tensors_of
from compress.channel_order import with_free_orders
from compress.finetune import finetune
from compress.first_pass import BATCH_TOKENS, FirstPass
from compress.methods.base import Artefact, Method, Preview, Replacement
from compress.progress import Progress, silent
from compress.recipe import Recipe
from compress.refine import Part, SecondPass
from compress.speed import judge
from compress.streaming import StreamedModel
from compress.units import Unit, allocated, control_steps, layers_of, units_of


@dataclass(frozen=True)
class Job:
    """A checked recipe, its model on disk, and its units, by variant ("compressed" and the controls)."""

    recipe: Recipe
    model: StreamedModel
    variants: Mapping[str, list[Unit]]
    work: Path  # unit files, gradients, refined layers: runs that differ in late decisions only may share it

    @property
    def second_pass(self) -> bool:
        return self.recipe.propagate_error or self.recipe.refine is not None

    @property
    def units(self) -> list[Unit]:
        """Distinct units over all variants, in layer order."""
        seen = {(unit.group.name, unit.fingerprint("")): unit for units in self.variants.values() for unit in units}
        return sorted(seen.values(), key=lambda u: (u.group.layer, u.group.step, u.group.name))


def prepare(recipe: Recipe, work: Path | None = None) -> Job:
    """Check a recipe against config.json and the safetensors headers; reads no weight. Raises ValueError or FileNotFoundError.

    `work` is where unit files go, by default `<output>/work`; several recipes may share one.
    """
    folder = checkpoint.locate(data.resolve_model(recipe.model.name), recipe.model.revision)
    checkpoint.keep_apart(recipe.output, folder)
    model = StreamedModel(folder)
    architecture, layers = model.architecture, model.n_layers
    variants = {"compressed": units_of(recipe, architecture, layers)}
    for control in recipe.evaluation.controls:
        steps = control_steps(recipe.steps, control)
        variants[control] = units_of(recipe.model_copy(update={"steps": steps}), architecture, layers)
    job = Job(recipe, model, variants, work or recipe.output / "work")
    if job.second_pass and any(len(layers_of(unit.group.modules, architecture)) > 1 for unit in variants["compressed"]):
        raise ValueError("propagate_error and refine work layer by layer; set layers_together: 1, or leave them out")
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
            per_layer[int(rest.split(".")[0])] += torch.Size(shape).numel() * 4
    widths = {
        need.input_of: shape[0 if model.architecture.conv1d else 1]
        for unit in job.units
        for need in unit.method.needs(unit.group, model.architecture).values()
        if (shape := model.shards.shapes.get(model.stored_name(f"{need.input_of}.weight"))) is not None
        and unit.group.layer == 0
    }
    statistics = sum(8 * width * width for width in set(widths.values()))
    hidden = 4 * (source.sequences or 128) * source.length * int(model.config.hidden_size)
    largest = max((8 * torch.Size(s).numel() for s in model.shards.shapes.values() if len(s) == 2), default=0)
    total = sum(model.shards.bytes(n) for n in model.shards)
    return 2 * max(per_layer) + statistics + hidden + 3 * largest // 2 + min(total, checkpoint.SHARD_BYTES)


def fit(recipe: Recipe, *, fresh: bool = False, progress: Progress = silent, work: Path | None = None) -> Path:
    """Run a recipe and return the checkpoint folder. Finished units of an earlier, interrupted run are taken over unless
    `fresh`.
    """
    job = prepare(recipe, work)
    if fresh:
        shutil.rmtree(job.work, ignore_errors=True)
    tokens = tokens_of(job)
    material = material_of(job, tokens)
    first_pass(job, material).run(job.units, tokens, progress)
    replacements = {
        name: second_pass(job, tokens, material, progress)
        if job.second_pass and name == "compressed"
        else replace_on_disk(job, units, material)
        for name, units in job.variants.items()
    }
    if recipe.finetune is not None:
        tick = progress("finetune", recipe.finetune.steps)
        replacements["compressed"] = finetune(
            job.model, replacements["compressed"], tokens, recipe.finetune, recipe.seed, job.work / "finetuned", tick
        )
    replacements["compressed"] = with_free_orders(job.model, replacements["compressed"])
    report = assemble(job, replacements["compressed"], material, data.token_hash(tokens), progress)
    evaluation = evaluate(job, replacements, progress)
    finish(job, replacements["compressed"], {**report, "evaluation": evaluation})
    return recipe.output


def tokens_of(job: Job) -> Tensor:
    """The recipe's calibration tokens, (sequences, length)."""
    return data.calibration_tokens(job.recipe.calibration, data.load_tokenizer(job.model.shards.folder))


def material_of(job: Job, tokens: Tensor | None = None) -> str:
    """What every unit depends on: the model's files, the calibration tokens, the seed."""
    tokens = tokens_of(job) if tokens is None else tokens
    return checkpoint.hash_json([job.model.shards.fingerprint(), data.token_hash(tokens), job.recipe.seed])


def first_pass(job: Job, material: str) -> FirstPass:
    return FirstPass(job.model, job.work, material, job.recipe.seed, job.second_pass)


def decided(job: Job, units: Sequence[Unit], material: str) -> list[Method]:
    """Each finished unit's method, with ranks that share a budget chosen together; reads spectra, not factors."""
    return allocated(units, [artefact_of(job, unit, material, only=("spectrum",)) for unit in units])


def artefact_of(job: Job, unit: Unit, material: str, only: Container[str] | None = None) -> Artefact:
    """A finished unit's file, or `only` some of its tensors. Raises FileNotFoundError where it is missing or damaged."""
    artefact = first_pass(job, material).artefact(unit, only)
    if artefact is None:
        raise FileNotFoundError(f"{unit.file(job.work, material)} is missing or damaged; run fit again")
    return artefact


def replace(job: Job, units: Sequence[Unit], material: str) -> list[Replacement]:
    """What each finished unit becomes; with `keep_dense_if_slower`, nothing where it would be slower."""
    return [
        _replacement(job, unit, method, material) for unit, method in zip(units, decided(job, units, material), strict=True)
    ]


def _replacement(job: Job, unit: Unit, method: Method, material: str) -> Replacement:
    made = method.replace(unit.group, artefact_of(job, unit, material), job.model.architecture)
    if not job.recipe.keep_dense_if_slower:
        return made
    device = "cpu" if job.recipe.keep_dense_if_slower is True else job.recipe.keep_dense_if_slower
    dtype = torch.float32 if device == "cpu" else storage_dtype(job.model)
    return judge([made], job.work / "speed.json", device, dtype)[0]


def replace_on_disk(job: Job, units: Sequence[Unit], material: str) -> list[Replacement]:
    """As `replace`, one unit in memory at a time: the tensors wait in files, in the dtype they will be stored in."""
    out = []
    for unit, method in zip(units, decided(job, units, material), strict=True):
        made = _replacement(job, unit, method, material)
        decision = checkpoint.hash_json(method.model_dump(mode="json"))[:12]
        file = job.work / "replaced" / f"{unit.file(job.work, material).stem}.{decision}.safetensors"
        out.append(dataclasses.replace(made, tensors=checkpoint.Spilled(file, stored_tensors(job.model, made))))
    return out


def second_pass(job: Job, tokens: Tensor, material: str, progress: Progress) -> list[Replacement]:
    """Error propagation and block refinement, in the order of the units."""
    units = job.variants["compressed"]
    parts = [
        Part(unit, method, replacement)
        for unit, method, replacement in zip(units, decided(job, units, material), replace(job, units, material), strict=True)
    ]
    layers = [[part for part in parts if part.unit.group.layer == index] for index in range(job.model.n_layers)]
    run = SecondPass(
        job.model,
        job.recipe.propagate_error,
        job.recipe.refine,
        storage_dtype(job.model),
        job.recipe.seed,
        job.work,
        first_pass(job, material).gradients,
    )
    tick = progress("refine layers", len(layers))
    batch = max(1, BATCH_TOKENS // tokens.shape[1])
    return [replacement for layer in run.run(tokens, batch, layers, material, tick) for replacement in layer]


def assemble(
    job: Job, replacements: Sequence[Replacement], material: str, token_hash: str, progress: Progress
) -> dict[str, Any]:
    """Write the weights; return the report's part that describes them."""
    model, output = job.model, job.recipe.output
    tick = progress("write checkpoint", 1)
    element = torch.empty(0, dtype=storage_dtype(model)).element_size()
    ours = sum(
        t.numel() * (element if t.dtype == torch.float64 else t.element_size())
        for r in replacements
        for t in r.tensors.values()
    )
    kept = kept_names(model, replacements)
    total = ours + sum(model.shards.bytes(name) for name in kept)
    (output / "config.json").unlink(
        missing_ok=True
    )  # a folder without config.json is not a checkpoint: nothing half-written loads
    files = checkpoint.write_shards(output, tensors_of(model, replacements), total)
    tick()
    before = sum(torch.Size(s).numel() for s in model.shards.shapes.values())
    after = sum(torch.Size(model.shards.shapes[n]).numel() for n in kept) + sum(
        t.numel() for r in replacements for t in r.tensors.values()
    )
    rows = []
    for unit, replacement in zip(job.variants["compressed"], replacements, strict=True):
        timing = checkpoint.read_json(unit.file(job.work, material).with_suffix(".json")) or {}
        rows += [{"layer": unit.group.layer, "method": unit.step.method, **row, **timing} for row in replacement.report]
    targeted = [(row["parameters_before"], row["parameters"]) for row in rows if "parameters_before" in row]
    return {
        "format": 1,
        "calibration": {"tokens_sha256": token_hash},
        "parameters": {
            "baseline": before,
            "compressed": after,
            "targeted_baseline": sum(b for b, _ in targeted),
            "targeted_compressed": sum(a for _, a in targeted),
        },
        "modules": rows,
        "files": files,
    }


def evaluate(job: Job, replacements: Mapping[str, Sequence[Replacement]], progress: Progress) -> dict[str, Any]:
    """Perplexity of every variant on every text of the recipe, in float32, and how often its surrogates clamped."""
    from compress.clamping import measured as measure

    evaluation = job.recipe.evaluation
    if not evaluation.texts:
        return {}
    tokenizer = data.load_tokenizer(job.model.shards.folder)
    texts = {name: data.evaluation_tokens(evaluation.source(name), tokenizer) for name in evaluation.texts}
    tick = progress("evaluate", len(texts) * (1 + len(replacements)))
    out: dict[str, Any] = {}
    # The original's numbers are kept beside the units: the points of a sweep measure it once.
    keys = {
        name: checkpoint.hash_json([job.model.shards.fingerprint(), data.token_hash(tokens)]) for name, tokens in texts.items()
    }
    known = checkpoint.read_json(job.work / "baseline.json") or {}
    for variant, parts in {"baseline": [], **replacements}.items():
        measured = {n: known[key] for n, key in keys.items() if key in known} if variant == "baseline" else {}
        model = load_variant(job.model, parts) if len(measured) < len(texts) else None
        out[variant] = {}
        for name, tokens in texts.items():
            out[variant][name] = measured[name] if name in measured or model is None else measure(model, tokens)
            tick()
    checkpoint.write_json(
        job.work / "baseline.json", {**known, **{keys[name]: value for name, value in out["baseline"].items()}}
    )
    return out


def finish(job: Job, replacements: Sequence[Replacement], report: Mapping[str, Any]) -> None:
    """Everything beside the weights; config.json, which makes the folder a checkpoint, last."""
    from compress.card import model_card
    from compress.remote_code import write_remote_code

    output, source = job.recipe.output, job.model.shards.folder
    checkpoint.copy_tokenizer(source, output)
    checkpoint.write_text(output / "recipe.yaml", job.recipe.to_yaml())
    checkpoint.write_json(output / "report.json", report)
    checkpoint.write_text(output / "README.md", model_card(job.recipe, report))
    config = checkpoint.read_json(source / "config.json") or {}
    config["quantization_config"] = {"quant_method": "compress", **plan_of(replacements).to_json()}
    checkpoint.write_json(output / "config.json", config)
    write_remote_code(output)
