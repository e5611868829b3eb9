# pyright: strict
"""What can be done with a finished checkpoint: export, bench, report, verify, evaluate. Each is the twin of a command."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.api.folders import AnyPath, checkpoint_folder, model_folder

if TYPE_CHECKING:
    from compress.bars import Shown
    from compress.measuring.verify import Finding


def export(
    checkpoint: AnyPath,
    *,
    onnx: bool = False,
    torch: bool = False,
    pt2: bool = False,
    out: AnyPath | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    opset: int = 23,
    quantize: Literal["int8", "int4"] | None = None,
    agreement: float | None = None,
    progress: Shown = None,
) -> dict[str, Any]:
    """Export a checkpoint, or a plain model folder, as ONNX and as standalone torch code; agreement with it is measured.

    Args:
        checkpoint: a folder that `fit` wrote, or one in HuggingFace format.
        onnx: write `onnx/model.onnx` with KV cache in and out, and what its clients read.
        torch: write `torch/model.py`, standalone, and its weights.
        pt2: with `torch`, write `torch/model.pt2` too, for `torch.export.load`.
        out: the folder that `onnx` and `torch` go into; by default the checkpoint's own.
        dtype: of weights and computation.
        opset: of ONNX; 23 has native attention, 20 suits older runtimes.
        quantize: a second ONNX graph whose matrices have 8 or 4 bits.
        agreement: the fraction of predictions on real text in which that graph must have the checkpoint's most likely token; by
            default 0.85 in int8 and 0.7 in int4.
        progress: None, "bar", or a function (see `compress.progress.Progress`).

    Returns {"torch": report, "onnx": report} of what was written.

    Raises FileNotFoundError for a folder that is none, ValueError for options that cannot be, NotImplementedError for an
    architecture that the format does not hold, RuntimeError where the export does not say what the checkpoint says,
    FileExistsError where a file that compress did not write is in the way.

    >>> import tempfile, compress
    >>> from compress.novella import FOLDER
    >>> with tempfile.TemporaryDirectory() as out:
    ...     found = compress.export(FOLDER, torch=True, out=out)
    >>> found["torch"]["greedy_agreement"]
    1.0
    """
    if not (onnx or torch):
        raise ValueError("nothing to export; give onnx, torch, or both")
    if pt2 and not torch:
        raise ValueError("pt2 is traced from the standalone torch code; give torch too")
    if not onnx and (quantize is not None or agreement is not None):
        raise ValueError("quantize and agreement are of a second ONNX graph; give onnx too")
    from compress.bars import shown
    from compress.checkpoint.lock import locked

    folder = checkpoint_folder(checkpoint)
    target = Path(out) if out is not None else folder
    reports: dict[str, Any] = {}
    given: dict[str, Any] = {"dtype": dtype, "opset": opset, "quantize": quantize, "agreement": agreement}
    if onnx:  # its options are looked at before torch is written
        from exporters.onnx.graph import check_options

        check_options(**given)
    with shown(progress) as tell, locked(target):
        if torch:
            from exporters.torch.source import export_pt2, export_torch

            tick = tell("export torch", 1)
            reports["torch"] = export_torch(folder, target / "torch", dtype=dtype)
            if pt2:
                reports["torch"]["pt2"] = str(export_pt2(target / "torch"))
            tick()
        if onnx:
            from exporters.onnx.graph import export_onnx

            reports["onnx"] = export_onnx(folder, target / "onnx", **given, progress=tell)
    return reports


def bench(
    checkpoints: AnyPath | Sequence[AnyPath],
    *,
    variants: Sequence[str] | None = None,
    runtimes: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (1,),
    contexts: Sequence[int] = (256,),
    prefill: int = 256,
    steps: int = 16,
    repeats: int = 20,
    cold_starts: int = 1,
    threads: int = 1,
    dtype: str = "auto",
    texts: Mapping[str, str | Mapping[str, Any]] | None = None,
    baseline: AnyPath | None = None,
    out: AnyPath | None = None,
    progress: Shown = None,
) -> dict[str, Any]:
    """Measure checkpoints side by side, against the baseline and the skip-MLP controls: speed, size, memory, quality.

    Args:
        checkpoints: one folder or several; a plain model folder is a baseline of its own.
        variants: of baseline (always measured), skip-identity, skip-zero, skip-mean, compressed; by default baseline,
            skip-identity and compressed.
        runtimes: of eager, compile, onnx, ort-int8; by default eager and onnx.
        devices: of cpu, cuda, mps; by default all that are present.
        batch_sizes, contexts: decoding is timed for each pair of them, `steps` tokens after the first one.
        prefill: tokens of the prompt whose forward pass, with all logits, is timed.
        repeats: rounds in which every variant has its turn; fewer than 6 give no interval.
        cold_starts: processes started per row; 0 leaves cold start and memory out.
        threads: of the CPU; one is the most repeatable.
        dtype: float32, bfloat16, float16, or auto: float32 on the CPU, the stored one elsewhere.
        texts: {name: a file, data set or "novella"} for perplexity, or {"text": that, "length": …, "sequences": …} as in a
            recipe; by default those of the first checkpoint's recipe.
        baseline: the original model, where it is not the one that a checkpoint's recipe names.
        out: results.json; by default `bench/results.json` in the first folder.
        progress: None, "bar", or a function (see `compress.progress.Progress`).

    Returns the content of results.json, which `report` draws.

    Raises FileNotFoundError or ValueError for what is not there or not allowed, before anything is measured; RuntimeError
    where no runtime works, or a loss is not finite.

    >>> import tempfile, compress
    >>> from compress.novella import FOLDER
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sizes = {"contexts": [8], "prefill": 8, "steps": 2, "repeats": 2, "cold_starts": 0}
    ...     texts = {"own": {"text": "novella", "length": 64, "sequences": 2}}
    ...     found = compress.bench(
    ...         FOLDER, runtimes=["eager"], devices=["cpu"], texts=texts, **sizes, out=f"{folder}/results.json"
    ...     )
    >>> [model["kind"] for model in found["models"]]
    ['baseline']
    """
    from compress.bars import shown
    from compress.measuring import run
    from compress.texts import TextSource
    from compress.validation import checked

    given = [checkpoints] if isinstance(checkpoints, (str, os.PathLike)) else checkpoints
    folders = [checkpoint_folder(path) for path in given]
    if not folders:
        raise ValueError("nothing to measure; give at least one checkpoint folder")
    named = {name: {"text": text} if isinstance(text, str) else text for name, text in (texts or {}).items()}
    read = {name: checked(TextSource, text) for name, text in named.items()} or None
    with shown(progress) as tell:
        return run.bench(
            folders,
            variants=run.DEFAULT_VARIANTS if variants is None else variants,
            runtimes=run.DEFAULT_RUNTIMES if runtimes is None else runtimes,
            devices=devices,
            batch_sizes=batch_sizes,
            contexts=contexts,
            prefill_length=prefill,
            steps=steps,
            repeats=repeats,
            cold_starts=cold_starts,
            threads=threads,
            dtype=dtype,
            texts=read,
            baseline=None if baseline is None else Path(baseline),
            out=folders[0] / "bench" / "results.json" if out is None else Path(out),
            progress=tell,
        )


def report(results: AnyPath | Mapping[str, Any], out: AnyPath | None = None) -> dict[str, Path]:
    """Draw the results of `bench`: plots, Markdown, and one self-contained HTML page.

    Args:
        results: what `bench` returned, its results.json, or the folder that holds it.
        out: folder for report.html, report.md and the plots; by default that of results.json.

    Returns the files by name: "markdown", "page", and each plot.

    Raises FileNotFoundError where there is no file, ValueError where it is no results.json of this version.

    >>> import compress
    >>> compress.report("nowhere/results.json")
    Traceback (most recent call last):
    FileNotFoundError: no file 'nowhere/results.json'; `compress bench DIR` writes results.json
    """
    from compress.reporting import write

    if isinstance(results, Mapping):
        if out is None:
            raise ValueError("out: give the folder to draw into, or the results as a file")
        return write.report(results, Path(out))
    file = Path(results)
    file = file / "results.json" if file.is_dir() else file
    return write.report(file, file.parent if out is None else Path(out))


def verify(checkpoint: AnyPath, *, tolerance: float = 1e-4, device: str = "auto", progress: Shown = None) -> list[Finding]:
    """Measure again, on this machine, every number of a checkpoint's report.json that can be.

    Args:
        checkpoint: a folder that `fit` wrote.
        tolerance: relative, of perplexities; everything else must be equal.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        progress: None, "bar", or a function (see `compress.progress.Progress`).

    Returns a finding per number, in the report's order; its `verdict` is "same", "differs" or "not measured".

    Raises FileNotFoundError for a folder that is no checkpoint or has no report.

    >>> import tempfile, compress
    >>> recipe = {"model": "novella", "steps": [{"method": "weight_svd", "layers": [0], "rank": {"keep": 0.5}}]}
    >>> recipe["calibration"] = {"text": "novella", "sequences": 1, "length": 32}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     findings = compress.verify(compress.fit({**recipe, "output": f"{folder}/out"}))
    >>> {finding.verdict for finding in findings}
    {'same'}
    """
    from compress.bars import shown
    from compress.compute import on_device
    from compress.measuring import verify as verification

    folder = checkpoint_folder(checkpoint)
    with shown(progress) as tell:
        return verification.verify(folder, tolerance, tell, on_device(device))


def evaluate(
    model: AnyPath,
    *,
    texts: Sequence[str] = (),
    tasks: Sequence[str] = (),
    length: int = 256,
    sequences: int | None = None,
    limit: int | None = None,
    bos: Literal["auto"] | bool = "auto",
    device: str = "auto",
    progress: Shown = None,
) -> dict[str, Any]:
    """Perplexity on texts and accuracy on multiple-choice tasks, in float32.

    Args:
        model: a checkpoint, a model folder, a hub id, or "novella".
        texts: text files, data set ids, or "novella".
        tasks: names of lm-evaluation-harness, or .jsonl files of questions.
        length, sequences: tokens per window, and at most this many windows per text.
        limit: at most this many questions per task, 1 or more.
        bos: what every window begins with: "auto" (what the tokenizer itself puts in front of a text), True (at least its
            beginning-of-sequence token) or False (nothing). Questions always begin as "auto".
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        progress: None, "bar", or a function (see `compress.progress.Progress`).

    Returns {text: {"perplexity", "nll", …}, "tasks": {task: {"accuracy", …}}}.

    Raises ValueError where there is nothing to evaluate, a text is too short or a task is not known, FileNotFoundError where
    the model or a text is not there, RuntimeError where a loss is not finite.

    >>> import compress
    >>> found = compress.evaluate("novella", texts=["novella"], length=64, sequences=4)
    >>> 10 < found["novella"]["perplexity"] < 200
    True
    """
    if not texts and not tasks:
        raise ValueError("nothing to evaluate; give texts, tasks, or both")
    from compress.bars import shown
    from compress.compute import on_device
    from compress.evaluating import texts_and_tasks

    with shown(progress) as tell:
        return texts_and_tasks.evaluate(
            model_folder(model), texts, tasks, length, sequences, limit, bos, tell, on_device(device)
        )
