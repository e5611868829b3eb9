"""The command line. Every heavy import is inside the command that needs it: `compress --help` loads no torch."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.cli import measure, recipes, surrogates
from compress.cli.console import (
    AsJson,
    Device,
    Overrides,
    RecipeFile,
    bar,
    emit,
    on,
    quiet_transformers,
    readable,
    show,
)
from compress.cli.mistakes import told
from compress.cli.several import SEVERAL, is_first, is_to_tell, leave, stopped
from compress.parallel import several

if TYPE_CHECKING:
    from compress.recipe import Recipe

EXIT_CODES = (
    "Exit codes: 0 done; 1 measured and not good enough (parity, a loss that is not finite, verify); 2 a mistake in what was "
    "given; 3 the machine (disk, memory, permission, another run on the output); 70 a bug of ours; 130 interrupted."
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Compress HuggingFace transformers after training.",
    epilog=EXIT_CODES,
)

recipes.add_to(app)
measure.add_to(app)
surrogates.add_to(app)


# Typer's usage errors: click's ClickException, or that of the click inside newer versions of Typer.
_USAGE: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def main() -> None:
    """Entry point: what goes wrong is one line per mistake on stderr, and one of `EXIT_CODES`; a warning is one line too."""
    # Whatever process is started from here on (inductor's compilers among them) imports nothing from the working folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    if several():
        signal.signal(signal.SIGTERM, stopped)
    try:
        code = app(standalone_mode=False)  # the code of an Exit, 130 for an interruption, or what the command returns
        if several() and not code:
            leave()
        if code == 130:
            print("interrupted; finished units are kept: run the same command again to continue", file=sys.stderr)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Abort:
        sys.exit(130)
    except _USAGE as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("COMPRESS_TRACEBACK"):
            raise
        code, text = told(error)
        if is_to_tell(text):
            print(text, file=sys.stderr)
        sys.exit(code)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if several() and context.invoked_subcommand not in SEVERAL:
        raise typer.BadParameter(
            f"{context.invoked_subcommand} runs in one process; torchrun is for {', '.join(SEVERAL)}: start it without"
        )
    if version:
        from compress import __version__

        print(__version__)
        raise typer.Exit()


@app.command()
def fit(
    recipe: RecipeFile,
    overrides: Overrides = None,
    device: Device = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan from config.json and headers alone.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Forget finished units of an earlier run, or take them over.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fit a recipe and write a checkpoint that from_pretrained loads; a list in a rank rule writes one per value."""
    first = is_first()
    file = readable(recipe)
    from compress.api import fit as api
    from compress.searching.points import points_of_lists

    points = points_of_lists(file, on(device, overrides))
    loaded = None if points else api.load_recipe(file, on(device, overrides))
    quiet_transformers()
    if several() and (points or dry_run):
        raise typer.BadParameter("several processes fit one recipe; --dry-run and lists in a rank rule run in one")
    if points and not dry_run:
        _fit_points(points, fresh, as_json)
        return
    if dry_run:
        _preview([loaded] if loaded else [point.recipe for point in points], as_json)
        return
    from compress.cli import tables

    assert loaded is not None
    checkpoint = api.fit(loaded, fresh=fresh, progress=bar(as_json or not first))
    if not first:
        return
    if as_json:
        emit({"output": str(checkpoint.path), **checkpoint.report})
    else:
        show(tables.quality_table(checkpoint.report["quality"]))
        show(tables.fit_table(checkpoint.report))
        print(f"checkpoint: {checkpoint.path}")


def _preview(recipes: Sequence[Recipe], as_json: bool) -> None:
    """The plan of each recipe, from config.json and headers alone."""
    from compress.cli import tables
    from compress.fitting.job import expected_peak_bytes, prepare, previews
    from compress.fitting.look_ahead import look_ahead
    from compress.fitting.write import check_output

    plans = []
    for recipe in recipes:
        job = prepare(recipe)
        look_ahead(job)
        check_output(job)
        rows, peak = [preview for _, preview in previews(job)], expected_peak_bytes(job)
        plans.append({"output": str(recipe.output), **tables.preview_json(rows, peak)})
        if not as_json:
            show(tables.preview_table(rows, peak, str(recipe.output)))
    if as_json:
        emit(plans[0] if len(plans) == 1 else {"points": plans})


@app.command()
def sweep(
    recipe: RecipeFile,
    settings: Annotated[list[str], typer.Option("--set", help="A key and its values: steps.0.rank.keep=0.8,0.6 (repeatable).")],
    device: Device = None,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Forget an earlier run, or take its finished points over.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fit a recipe at every combination of values, from one statistics pass; writes sweep.json and a plot."""
    file = readable(recipe)
    from compress.searching.points import points_of_settings

    points = points_of_settings(file, settings, on(device))
    quiet_transformers()
    _fit_points(points, fresh, as_json)


@app.command()
def search(
    recipe: RecipeFile,
    overrides: Overrides = None,
    device: Device = None,
    metric: Annotated[str, typer.Option(help="perplexity or tasks.")] = "perplexity",
    tolerance: Annotated[
        float | None, typer.Option(help="Growth of perplexity per linear (0.005), or loss of accuracy (0.01).")
    ] = None,
    tasks: Annotated[Path | None, typer.Option(help="A jsonl file of multiple-choice questions, for --metric tasks.")] = None,
    search_windows: Annotated[int, typer.Option(help="The search sees the first windows of the first evaluation text …")] = 32,
    test_windows: Annotated[int, typer.Option(help="… and the report the last ones.")] = 64,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = 128,
    compare_uniform: Annotated[
        bool, typer.Option("--compare-uniform/--no-compare-uniform", help="Measure uniform ranks of equal stored size too.")
    ] = True,
    fresh: Annotated[bool, typer.Option("--fresh/--resume", help="Forget an earlier search, or continue it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Choose each linear's rank by measuring, last layer first; writes ranks.json for `rank: {table: …}`."""
    readable(recipe)
    from compress.api import fit as api
    from compress.api import search as searches

    loaded = api.load_recipe(recipe, on(device, overrides))
    quiet_transformers()
    from compress.cli import tables

    found = searches.search(
        loaded,
        metric=metric,  # pyright: ignore[reportArgumentType] - checked there
        tolerance=tolerance,
        tasks=tasks,
        search_windows=search_windows,
        test_windows=test_windows,
        length=length,
        compare_uniform=compare_uniform,
        fresh=fresh,
        progress=bar(as_json),
    )
    if as_json:
        emit({"output": str(loaded.output), **found})
    else:
        show(tables.search_table(found))
        print(f"ranks: {loaded.output / 'ranks.json'}")


def _fit_points(points: list[Any], fresh: bool, as_json: bool) -> None:
    from compress.bars import shown
    from compress.cli import tables
    from compress.searching import sweep as sweeps

    output = points[0].recipe.output.parent
    with shown(bar(as_json)) as progress:
        rows = sweeps.fit_points(points, progress, fresh=fresh)
    if as_json:
        emit({"output": str(output), "points": rows})
    else:
        show(tables.sweep_table(rows))
        print(f"points: {output / 'sweep.json'}")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder that `compress fit` wrote.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write onnx/model.onnx with KV cache in and out.")] = False,
    torch: Annotated[bool, typer.Option("--torch", help="Write torch/model.py, standalone, and its weights.")] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help="With --torch: torch/model.pt2 too, for torch.export.load.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to; default: inside the checkpoint folder.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    opset: Annotated[int, typer.Option(help="ONNX opset; 23 has native attention, 20 suits older runtimes.")] = 23,
    quantize: Annotated[str | None, typer.Option(help="int8 or int4: a second ONNX graph with such matrices.")] = None,
    agreement: Annotated[
        float | None, typer.Option(help="Fraction of most likely tokens a quantized graph must share (int8 0.85, int4 0.7).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a checkpoint as ONNX and as standalone torch code; parity is measured and a breach is an error."""
    quiet_transformers()
    from compress.api import finished
    from compress.cli import tables

    given: dict[str, Any] = {"dtype": dtype, "opset": opset, "quantize": quantize, "agreement": agreement}  # checked there
    reports = finished.export(folder, onnx=onnx, torch=torch, pt2=pt2, out=out, **given, progress=bar(as_json))
    emit(reports) if as_json else show(tables.export_table(reports))


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="A method; without one, all are listed.")] = None, as_json: AsJson = False
) -> None:
    """List the methods, or document one method's options."""
    from compress import methods as registry
    from compress.cli import tables
    from compress.validation import nearest

    if name is not None and name not in registry.names():
        raise ValueError(f"unknown method {name!r}; {nearest(name, registry.names())}")
    chosen = {n: registry.load(n) for n in ([name] if name else registry.names())}
    if as_json:
        emit({n: m.model_json_schema() for n, m in chosen.items()})
    else:
        show(tables.method_table(*next(iter(chosen.items()))) if name else tables.methods_table(chosen))
