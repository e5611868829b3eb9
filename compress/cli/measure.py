"""The commands that measure: bench, report, verify, eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compress.cli.console import AsJson, Beginning, Device, bar, emit, parse_beginning, quiet_transformers, show


def add_to(app: typer.Typer) -> None:
    """Register the commands of this file."""
    for command in (bench, report, verify):
        app.command()(command)
    app.command("eval")(evaluate)


def bench(
    folders: Annotated[list[Path], typer.Argument(help="Checkpoint folders, measured side by side in one interleaved run.")],
    variants: Annotated[str, typer.Option(help="Of baseline, skip-identity, skip-zero, skip-mean, compressed.")] = "",
    runtimes: Annotated[str, typer.Option(help="Of eager, compile, onnx, ort-int8.")] = "",
    devices: Annotated[str, typer.Option(help="Of cpu, cuda, mps; default: all that are present.")] = "",
    batch_sizes: Annotated[str, typer.Option(help="Decode batch sizes, such as 1,4.")] = "1",
    contexts: Annotated[str, typer.Option(help="Decode context lengths, such as 256,512.")] = "256",
    prefill: Annotated[int, typer.Option(help="Prompt tokens of the timed prefill.")] = 256,
    repeats: Annotated[int, typer.Option(help="Interleaved rounds.")] = 20,
    threads: Annotated[int, typer.Option(help="CPU threads; one is the most repeatable.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto.")] = "auto",
    text: Annotated[
        list[str] | None, typer.Option(help="Text file or data set id to judge by (repeatable); default: the recipe's.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="The original model, where recipe.yaml does not name it.")] = None,
    out: Annotated[Path | None, typer.Option(help="results.json; default: bench/results.json in the first folder.")] = None,
    as_report: Annotated[bool, typer.Option("--report", help="Also write the plots and the HTML page.")] = False,
    as_json: AsJson = False,
) -> None:
    """Benchmark checkpoints against the baseline and the skip-MLP controls: speed, size, memory, quality."""
    from compress.api import finished

    for folder in folders:
        finished.checkpoint_folder(folder)
    quiet_transformers()
    target = out or folders[0] / "bench" / "results.json"
    results = finished.bench(
        folders,
        variants=_split(variants) or None,
        runtimes=_split(runtimes) or None,
        devices=_split(devices) or None,
        batch_sizes=_numbers(batch_sizes, "batch-sizes"),
        contexts=_numbers(contexts, "contexts"),
        prefill=prefill,
        repeats=repeats,
        threads=threads,
        dtype=dtype,
        texts=_named(text or []) or None,
        baseline=baseline,
        out=target,
        progress=bar(as_json),
    )
    _present(results, target, as_report, as_json)


def report(
    results: Annotated[Path, typer.Argument(help="A results.json that `compress bench` wrote, or the folder it is in.")],
    out: Annotated[Path | None, typer.Option(help="Folder for report.html, report.md and the plots.")] = None,
) -> None:
    """Draw a results.json: plots, Markdown, and one self-contained HTML page."""
    from compress.api import finished

    for path in finished.report(results, out).values():
        print(path)


def verify(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure a checkpoint's own report again on this machine; exit code 1 where something differs."""
    from compress.api import finished
    from compress.measuring.verify import differences

    quiet_transformers()
    findings = finished.verify(folder, device=device or "auto", progress=bar(as_json))
    if as_json:
        emit([vars(finding) for finding in findings])
    else:
        from compress.cli.tables import findings_table

        show(findings_table(findings))
    if differences(findings):
        raise typer.Exit(1)


def evaluate(
    folder: Annotated[str, typer.Argument(help="A checkpoint folder, a model folder, a hub id, or novella.")],
    text: Annotated[list[str] | None, typer.Option(help="Text file, novella, or a data set id (repeatable).")] = None,
    tasks: Annotated[str, typer.Option(help="lm-evaluation-harness tasks, or a multiple-choice .jsonl; comma-separated.")] = "",
    length: Annotated[int, typer.Option(help="Window length in tokens.")] = 256,
    sequences: Annotated[int | None, typer.Option(help="At most this many windows per text.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many questions per task.")] = None,
    bos: Beginning = "auto",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Perplexity on texts and accuracy on multiple-choice tasks."""
    if not text and not tasks:
        raise ValueError("nothing to evaluate; give --text, --tasks, or both")
    quiet_transformers()
    from compress.api import finished

    sizes: dict[str, Any] = {"length": length, "sequences": sequences, "limit": limit, "bos": parse_beginning(bos)}
    sizes["device"] = device or "auto"
    out = finished.evaluate(folder, texts=text or [], tasks=_split(tasks), **sizes, progress=bar(as_json))
    if as_json:
        emit(out)
    else:
        from compress.cli.tables import evaluation_table

        show(evaluation_table(out))


def _present(results: dict[str, Any], target: Path, as_report: bool, as_json: bool) -> None:
    from compress.reporting.write import render_table
    from compress.reporting.write import report as write_report

    drawn = write_report(target, target.parent) if as_report else {}
    if as_json:
        emit(results)
        return
    show(render_table(results))
    print(f"results: {target}")
    for path in drawn.values():
        print(path)


def _named(texts: list[str]) -> dict[str, str]:
    """A short name for each text: its stem, or all of it where two have the same one."""
    stems = [Path(text).stem for text in texts]
    return {stem if stems.count(stem) == 1 else text: text for stem, text in zip(stems, texts, strict=True)}


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str, name: str) -> list[int]:
    try:
        return [int(part) for part in _split(text)]
    except ValueError:
        raise ValueError(f"--{name} {text!r}: give whole numbers separated by commas, such as 1,4") from None
