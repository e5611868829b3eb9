"""Measure checkpoints against their baseline and the skip-MLP controls; everything goes to one versioned results.json.

    checkpoints ──variants──► model folders ──runtimes × devices──► blocks of runners that take turns ──► rows
                                             └─ a process of its own each ──► cold start, memory

The same call gives the same results.json, apart from times and memory. `compress.reporting` draws from that file alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from compress import data
from compress.architecture import architecture
from compress.checkpoint.files import read_json, write_json
from compress.checkpoint.lock import locked
from compress.checkpoint.manifest import Manifest
from compress.clock import choose_devices
from compress.evaluating.cost import account
from compress.evaluating.origin import record
from compress.measuring.latency import Workload
from compress.measuring.machine import commit, machine, versions
from compress.measuring.runtimes import Runtime, check_runtimes
from compress.measuring.session import Blocks
from compress.measuring.variants import Kind, Variant, check_kinds, collect, control_layers
from compress.novella import FOLDER
from compress.plan import read_plan
from compress.progress import Progress, silent

FORMAT = 1
PART, WORK = "bench", "bench-work"  # of the manifest where results.json is; the folder beside it
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEFAULT_VARIANTS: tuple[Kind, ...] = ("baseline", "skip-identity", "compressed")
DEFAULT_RUNTIMES: tuple[Runtime, ...] = ("eager", "onnx")


def bench(
    paths: Sequence[Path],
    *,
    variants: Sequence[str] = DEFAULT_VARIANTS,
    runtimes: Sequence[str] = DEFAULT_RUNTIMES,
    devices: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (1,),
    contexts: Sequence[int] = (256,),
    prefill_length: int = 256,
    steps: int = 16,
    repeats: int = 20,
    warmup: int = 10,
    cold_starts: int = 1,
    seed: int = 0,
    threads: int = 1,
    dtype: str = "auto",
    texts: Mapping[str, data.TextSource] | None = None,
    prompt: str | None = None,
    baseline: Path | None = None,
    out: Path | None = None,
    work: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure checkpoints (or plain models) side by side; return the results, also written to `out`.

    Args:
        paths: checkpoint folders; a plain model folder is a baseline of its own.
        variants: of baseline (always measured), skip-identity, skip-zero, skip-mean, compressed.
        runtimes: of eager, compile, onnx, ort-int8.
        devices: of cpu, cuda, mps; all that are present by default.
        batch_sizes, contexts: decoding is timed for each pair of them, `steps` tokens after the first one.
        prefill_length: tokens of the prompt whose forward pass, with all logits, is timed.
        repeats: rounds in which every variant has its turn; fewer than 6 give no interval.
        warmup: at most this many runs before the first round; fewer where the times are stable.
        cold_starts: processes started per row, of which the median counts; 0 leaves cold start and memory out.
        seed: of the bootstrap.
        threads: of the CPU; one is the most repeatable.
        dtype: float32, bfloat16, float16, or auto: float32 on the CPU, the stored one elsewhere.
        texts: named texts for perplexity; by default those of the first checkpoint's recipe.
        prompt: beginning of the generated texts; by default the beginning of the first text.
        baseline: the original model, where it is not the one that a checkpoint's recipe.yaml names.
        work: folder for the skip variants and exported graphs, which are used again; by default beside `out`, and without
            that a temporary one.

    Raises ValueError or FileNotFoundError for what is not there or not allowed, and FileExistsError where a file that compress
    did not write is in the way, before anything is measured; RuntimeError where no runtime works, or a loss is not finite.
    """
    chosen, places = check_runtimes(list(runtimes)), choose_devices(devices)
    load = Workload(prefill_length, tuple(batch_sizes), tuple(contexts), steps, repeats, warmup, seed)
    kinds = check_kinds(["baseline", *variants])
    if not paths or not chosen or not places:
        raise ValueError("nothing to measure; give at least one checkpoint folder, one runtime and one device")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
    if threads < 1:
        raise ValueError(f"threads is {threads}; give 1 or more")
    started = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), "versions": versions()}
    tick = progress("prepare", 2)
    with _working_folder(work, out) as folder:
        competitors = collect(paths, kinds, folder, baseline)
        tick()
        blocks = Blocks(competitors, chosen, places, load, threads, dtype, folder, progress)
        blocks.read_texts(texts or _texts_of(competitors), prompt)
        tick()
        blocks.measure()
        if cold_starts:
            blocks.measure_cold(cold_starts)
        models = [describe(variant, max(load.contexts)) for variant in competitors]
        settings = {"variants": kinds, "runtimes": chosen, "devices": places, "threads": threads, "dtype": dtype}
        results = {
            "format": FORMAT,
            **started,
            "commit": commit(),
            "settings": {**settings, "cold_starts": cold_starts, **asdict(load)},
            "texts": {label: [text.to_json() for text in read] for label, read in blocks.texts.items()},
            "models": models,
            "rows": blocks.rows,
            "generation": blocks.generation,
            "skipped": blocks.skipped,
        }
        if out is not None:
            with Manifest(out.parent, PART).files(out.name) as (path,):
                write_json(path, results)
    return results


@contextmanager
def _working_folder(work: Path | None, out: Path | None) -> Iterator[Path]:
    if work is None and out is None:
        with TemporaryDirectory() as folder:
            yield Path(folder)
        return
    with locked(out.parent if out is not None else cast(Path, work)):
        if out is not None:
            manifest = Manifest(out.parent, PART)
            manifest.check([out.name])
            if work is None:
                manifest.claim(WORK)
        yield work or cast(Path, out).parent / WORK


def describe(variant: Variant, context: int) -> dict[str, Any]:
    """What a variant is and costs, whatever runs it; of a compressed one also its report's row per module."""
    config = read_json(variant.folder / "config.json") or {}
    plan = read_plan(variant.folder)
    report = read_json(variant.folder / "report.json") if variant.kind == "compressed" else None
    return {
        "label": variant.label,
        "name": variant.folder.name if variant.kind in ("baseline", "compressed") else None,
        "kind": variant.kind,
        "baseline": variant.baseline,
        "model_type": config["model_type"],
        "layers": control_layers(plan, architecture(config["model_type"])),
        "replacements": dict(Counter(spec.kind for spec in plan.modules)),
        "account": account(variant.folder, context).to_json(),
        "modules": (report or {}).get("modules", []),
    }


def _texts_of(competitors: Sequence[Variant]) -> dict[str, data.TextSource]:
    """The evaluation texts of the first checkpoint that names some, or the packaged one where the packaged model is measured.

    Raises ValueError for other models: the packaged text says nothing of them.
    """
    for variant in competitors:
        if variant.kind == "compressed" and (variant.folder / "recipe.yaml").is_file():
            evaluation = record(variant.folder).evaluation
            if evaluation.texts:
                return {name: evaluation.source(name) for name in evaluation.texts}
    if not any(variant.folder.resolve() == FOLDER.resolve() for variant in competitors):
        raise ValueError(
            f"no recipe here names evaluation texts, and the packaged one is for {data.DEMO} alone; give --text FILE, "
            "or evaluation.texts in the recipe"
        )
    return {data.DEMO: data.TextSource.model_validate({"text": data.DEMO})}
