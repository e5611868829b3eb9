"""recipe → checkpoint. Read top to bottom: check, stream and fit unit by unit, decide and assemble, evaluate.

Every unit is one file in the folder of unfinished work, written atomically: kill the process at any moment, run again, and it
continues and ends with the same bytes. The checkpoint is built beside the output and takes its place in one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from compress import data
from compress.checkpoint.disk import remove_tree
from compress.checkpoint.files import hash_json, read_json, write_json
from compress.checkpoint.lock import locked
from compress.checkpoint.swap import recover, replacing
from compress.checkpoint.work import open_work
from compress.fitting.acceptance import Acceptance
from compress.fitting.alike import check_alike, check_shared
from compress.fitting.assemble import load_variant, storage_dtype
from compress.fitting.channel_order import with_free_orders
from compress.fitting.decide import artefact_of, decided, first_pass_of, replace_on_disk
from compress.fitting.finetune import finetune
from compress.fitting.job import Job, prepare, source_hash_of
from compress.fitting.look_ahead import Texts, look_ahead
from compress.fitting.picks import Choice, Pick, with_picks, with_simplest
from compress.fitting.second_pass import SecondPass
from compress.fitting.twin import Part
from compress.fitting.units import evenly
from compress.fitting.write import EDITABLE, PART, assemble, check_output, finish
from compress.methods.base import Replacement
from compress.parallel.world import world
from compress.progress import Progress, silent
from compress.recipe import Recipe
from compress.stream.original import Original

SHARED, PROPAGATION = "one budget for all ranks", "error propagation"


def fit(
    recipe: Recipe,
    *,
    fresh: bool = False,
    progress: Progress = silent,
    work: Path | None = None,
    original: Original | None = None,
    picks: Sequence[Choice] = (),
) -> Path:
    """Run a recipe and return the checkpoint folder. Finished units of an earlier, interrupted run are taken over unless
    `fresh`, and so is what was picked by hand, to which `picks` adds; `original` is the model to compress where it is not the
    folder that the recipe names.

    Raises FileExistsError where a file that compress did not write is in the way, RuntimeError where another run is on it.
    """
    job = prepare(recipe, work, original)
    texts = look_ahead(job)  # nothing is touched for a recipe that cannot run
    source_hash = source_hash_of(job, texts.calibration)
    check_alike(job, source_hash)
    # One of the processes writes what there is one of; what they share is in the work folder.
    with locked(recipe.output) if world().first else nullcontext():
        if world().first:
            recover(recipe.output)
            check_output(job)
            open_work(recipe.output, job.work, fresh)
        check_shared(job.work)
        job, picked = with_picks(job, source_hash, picks, fresh)
        job, replacements, quality = _fitted(job, texts, source_hash, progress)
        if world().first:
            _write(job, replacements, texts, quality, picked, source_hash, progress)
        world().meet()
    return recipe.output


def _write(
    job: Job,
    replacements: Mapping[str, Sequence[Replacement]],
    texts: Texts,
    quality: Mapping[str, Any],
    picked: Sequence[Pick],
    source_hash: str,
    progress: Progress,
) -> None:
    """Build the checkpoint beside the output, evaluate it, and put it in the output's place."""
    made = replacements["compressed"]
    with replacing(job.recipe.output, PART, keep=EDITABLE) as folder:
        report = assemble(job, made, source_hash, data.token_hash(texts.calibration), folder, progress)
        evaluation = evaluate(job, replacements, texts.evaluation, progress)
        finish(job, made, {**report, "quality": quality, "evaluation": evaluation}, picked, folder)
    remove_tree(job.work / "replaced")  # written anew by every fit


def _fitted(
    job: Job, texts: Texts, source_hash: str, progress: Progress
) -> tuple[Job, dict[str, Sequence[Replacement]], dict[str, Any]]:
    """The job as it was decided; what replaces what, by variant ("compressed" and the controls); what each lever did to the
    loss.
    """
    tokens = texts.calibration
    first_pass_of(job, source_hash).run(job.units, tokens, progress)
    replacements: dict[str, Sequence[Replacement]] = {
        name: replace_on_disk(job, units, source_hash) for name, units in job.variants.items()
    }
    recipe = job.recipe
    acceptance = Acceptance(job, texts, progress)
    job, closed = closed_form(job, replacements["compressed"], acceptance, source_hash)
    job, closed = expressions(job, closed, acceptance, source_hash)
    kept = closed
    if recipe.propagate_error:
        mended = second_pass(job, closed, tokens, source_hash, progress, propagate=True)
        kept = acceptance.better(PROPAGATION, kept, mended)
    if recipe.refine is not None:
        # Layer by layer with propagation, where that is taken: each is refitted on refined ones.
        propagate = acceptance.took(PROPAGATION)
        mended = second_pass(job, closed, tokens, source_hash, progress, propagate=propagate, refine=True)
        kept = acceptance.better("block refinement", kept, mended)
    if recipe.finetune is not None:
        tick = progress("finetune", recipe.finetune.steps)
        tuned = finetune(job.model, kept, tokens, recipe.finetune, recipe.seed, job.work / "finetuned", tick)
        kept = acceptance.better("fine-tuning", kept, tuned)
    replacements["compressed"] = with_free_orders(job.model, kept)
    return job, replacements, acceptance.report()


def closed_form(
    job: Job, made: Sequence[Replacement], acceptance: Acceptance, source_hash: str
) -> tuple[Job, Sequence[Replacement]]:
    """What the first pass gives; with one budget for all ranks, only where that is better than the same fraction of each."""
    even = evenly(job.variants["compressed"])
    if even is None:
        return job, acceptance.first("closed form", made)
    uniform = acceptance.first("closed form, uniform ranks", replace_on_disk(job, even, source_hash))
    kept = acceptance.better(SHARED, uniform, made)
    return (job if acceptance.took(SHARED) else replace(job, variants={**job.variants, "compressed": even})), kept


def expressions(
    job: Job, made: Sequence[Replacement], acceptance: Acceptance, source_hash: str
) -> tuple[Job, Sequence[Replacement]]:
    """Expressions that cost the whole model loss give way to the simplest of their fronts, layer by layer: what is left of a
    surrogate is its linear part.
    """
    for at, unit in enumerate(job.variants["compressed"]):
        if not unit.method.has_expressions:
            continue
        simplest = unit.method.simplest(artefact_of(job, unit, source_hash, only=()), unit.group.layer)
        if not simplest:
            continue
        without = with_simplest(job, at, simplest)
        (alone,) = replace_on_disk(job, [without.variants["compressed"][at]], source_hash)
        lever = f"no expressions in layer {unit.group.layer}"
        made = acceptance.better(lever, made, [*made[:at], alone, *made[at + 1 :]])
        job = without if acceptance.took(lever) else job
    return job, made


def second_pass(
    job: Job,
    closed: Sequence[Replacement],
    tokens: Tensor,
    source_hash: str,
    progress: Progress,
    *,
    propagate: bool,
    refine: bool = False,
) -> list[Replacement]:
    """Error propagation, block refinement or both, from the closed form on; in the order of the units."""
    units = job.variants["compressed"]
    parts = [Part(*part) for part in zip(units, decided(job, units, source_hash), closed, strict=True)]
    layers = [[part for part in parts if part.unit.group.layer == index] for index in range(job.model.n_layers)]
    run = SecondPass(
        job.model,
        propagate,
        job.recipe.refine if refine else None,
        storage_dtype(job.model),
        job.recipe.seed,
        job.work,
        first_pass_of(job, source_hash).gradients,
    )
    tick = progress("refine layers" if refine else "propagate errors", len(layers))
    return [replacement for layer in run.run(tokens, layers, source_hash, tick) for replacement in layer]


def evaluate(
    job: Job, replacements: Mapping[str, Sequence[Replacement]], texts: Mapping[str, Tensor], progress: Progress
) -> dict[str, Any]:
    """Perplexity of every variant on every text of the recipe, in float32, and how often its surrogates clamped."""
    from compress.evaluating.clamping import measured as measure

    if not texts:
        return {}
    tick = progress("evaluate", len(texts) * (1 + len(replacements)))
    out: dict[str, Any] = {}
    # The original's numbers are kept beside the units: the points of a sweep measure it once.
    keys = {name: hash_json([job.model.shards.fingerprint(), data.token_hash(tokens)]) for name, tokens in texts.items()}
    known = read_json(job.work / "baseline.json") or {}
    for variant, parts in {"baseline": [], **replacements}.items():
        measured = {n: known[key] for n, key in keys.items() if key in known} if variant == "baseline" else {}
        # Where the whole baseline is known, the original is not even loaded.
        model = load_variant(job.model, parts).to(job.model.device) if len(measured) < len(texts) else None
        out[variant] = {}
        for name, tokens in texts.items():
            out[variant][name] = measured[name] if name in measured or model is None else measure(model, tokens)
            tick()
    write_json(job.work / "baseline.json", {**known, **{keys[name]: value for name, value in out["baseline"].items()}})
    return out
