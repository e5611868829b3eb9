"""What the commands share: progress bars, printing, the checks and settings every one of them starts with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from compress.progress import Progress, Tick

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a recipe value: steps.0.rank.keep=0.6 (repeatable).")
]


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Progress]:
    """Rich bars on stderr; silent where it is no terminal or the output is JSON."""
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description:<18}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[note]}", style="dim"),
    )
    with rich.Progress(*columns, console=Console(stderr=True), disable=quiet or not sys.stderr.isatty()) as bar:

        def task(description: str, total: int) -> Tick:
            identifier = bar.add_task(description, total=total, note="")
            return lambda note="", done=1: bar.update(identifier, advance=done, note=note)

        yield task


def show(value: Any) -> None:
    """Print a rich renderable on stdout."""
    from rich.console import Console

    Console().print(value)


def emit(value: Any) -> None:
    """Print JSON on stdout."""
    print(json.dumps(value, indent=1, default=str))


def need_checkpoint(folder: Path) -> None:
    """Raises FileNotFoundError where the folder is no checkpoint, saying so if a fit was interrupted there."""
    if not (folder / "config.json").is_file():
        hint = " (an unfinished fit: run it again to continue)" if (folder / "work").is_dir() else ""
        raise FileNotFoundError(f"{folder} is no checkpoint folder: it has no config.json{hint}")


def quiet_transformers() -> None:
    """Our own bars and errors replace transformers' loading bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def recipes_folder() -> Path:
    """The packaged recipes: inside an installed wheel, or beside the package in a source checkout."""
    inside = Path(__file__).parents[1] / "_recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def packaged(path: Path) -> Path:
    """`path` itself, or the packaged recipe of that name where no such file is here."""
    if path.is_file():
        return path
    packaged = recipes_folder() / (path.name if path.suffix else f"{path.name}.yaml")
    return packaged if packaged.is_file() else path
