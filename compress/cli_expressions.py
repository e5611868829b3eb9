"""The commands about expressions: show, pick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress.console import AsJson, emit, need_checkpoint, progress_bars, quiet_transformers, show

Folder = Annotated[Path, typer.Argument(help="A checkpoint folder that `compress fit` wrote, with its work folder.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command("show")(show_expressions)
    app.command("pick")(pick)


def show_expressions(
    folder: Folder,
    layer: Annotated[int | None, typer.Option(help="One layer; default: all that have expressions.")] = None,
    latex: Annotated[bool, typer.Option("--latex", help="The chosen expressions in LaTeX.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the Pareto fronts of a checkpoint's expressions; the chosen ones are marked."""
    from compress import tables
    from compress.expressions import expressions

    need_checkpoint(folder)
    quiet_transformers()
    found = expressions(folder, layer)
    if as_json:
        emit([item.to_json() for item in found])
    elif latex:
        print("\n\n".join(f"% layer {item.layer}\n{item.latex()}" for item in found))
    else:
        for item in found:
            show(tables.fronts_table(item.to_json()))


def pick(
    folder: Folder,
    layer: Annotated[int, typer.Option(help="The layer whose expression changes.")],
    output: Annotated[int, typer.Option(help="Which of its outputs, from 0.")],
    complexity: Annotated[int, typer.Option(help="The most accurate expression of at most this complexity is taken.")],
    as_json: AsJson = False,
) -> None:
    """Choose one expression by hand and write the checkpoint again; nothing is fitted again."""
    from compress import expressions as fronts

    need_checkpoint(folder)
    quiet_transformers()
    with progress_bars(as_json) as progress:
        fronts.pick(folder, layer, output, complexity, progress)
    found = fronts.expressions(folder, layer)[0]
    chosen = found.to_json()["outputs"][output]
    emit(chosen) if as_json else print(chosen["candidates"][chosen["chosen"]]["text"])
