"""What the commands share: printing, and the settings every one of them starts with."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a recipe value: steps.0.rank.keep=0.6 (repeatable).")
]
Beginning = Annotated[
    str,
    typer.Option("--bos", help="What texts begin with: auto (as the tokenizer has it), true (at least its BOS) or false."),
]


def bar(as_json: bool) -> Literal["bar"] | None:
    """How the command shows progress: not at all where the output is JSON."""
    return None if as_json else "bar"


def show(value: Any) -> None:
    """Print a rich renderable on stdout."""
    from rich.console import Console

    Console().print(value)


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
