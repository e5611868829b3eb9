"""What the commands share: printing, and the settings every one of them starts with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from compress.packaged import recipe_file
from compress.reading import yaml_text

_NO_EDGE = 1000

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a name that `compress recipes ls` lists.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a recipe value: steps.0.rank.keep=0.6 (repeatable).")
]
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps; by default the recipe's compute.device, auto.")
]
Beginning = Annotated[
    str,
    typer.Option("--bos", help="What texts begin with: auto (as the tokenizer has it), true (at least its BOS) or false."),
]


def bar(as_json: bool) -> Literal["bar"] | None:
    """How the command shows progress: not at all where the output is JSON."""
    return None if as_json else "bar"


def on(device: str | None, overrides: list[str] | None = None) -> list[str]:
    """Overrides of a recipe, and the device that a command was given."""
    return [*(overrides or []), *([f"compute.device={device}"] if device else [])]


def readable(recipe: str) -> Path:
    """The file of a recipe, where it is YAML: looked at before anything heavy is imported. Raises as reading it would."""
    file = recipe_file(recipe)
    yaml_text.read(file)
    return file


def show(value: Any) -> None:
    """Print a rich renderable on stdout; in a file or a pipe as wide as it wants to be, since nobody sees an edge there.

    Brackets and colons are text: names, paths and reasons have them.
    """
    from rich.console import Console

    plain: Any = {"markup": False, "emoji": False}
    console = Console(**plain)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(**plain, width=_NO_EDGE)
    console.print(value)


def emit(value: Any) -> None:
    """Print JSON on stdout."""
    print(json.dumps(value, indent=1, default=str))


def quiet_transformers() -> None:
    """Our own bars and errors replace transformers' loading bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def parse_beginning(text: str) -> Any:
    """`--bos` as the library takes it. Raises ValueError for another word."""
    known = {"auto": "auto", "true": True, "false": False}
    if text not in known:
        raise ValueError(f"--bos {text!r}: give {', '.join(known)}")
    return known[text]
