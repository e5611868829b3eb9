"""How a caller hears of progress: not at all, by rich bars on stderr, or through a function of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from compress.progress import Progress, Tick, silent

Shown = Progress | Literal["bar"] | None  # what the functions of `compress` take


@contextmanager
def shown(progress: Shown) -> Iterator[Progress]:
    """What work calls; transformers' own loading bars are off meanwhile. Raises ValueError for another word than "bar".

    >>> with shown(None) as progress:
    ...     progress("fit", 2)()
    """
    if progress is not None and progress != "bar" and not callable(progress):
        raise ValueError(f'progress: {progress!r} given; give "bar", a function (description, parts) → tick, or None')
    with _without_loading_bars():
        if progress == "bar":
            with bars() as drawn:
                yield drawn
        else:
            yield progress or silent


@contextmanager
def bars(quiet: bool = False) -> Iterator[Progress]:
    """Rich bars on stderr; silent where it is no terminal, or `quiet`."""
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description:<18}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with rich.Progress(*columns, console=Console(stderr=True), disable=quiet or not sys.stderr.isatty()) as bar:

        def task(description: str, total: int) -> Tick:
            identifier = bar.add_task(description, total=total, note="")
            return lambda note="", done=1: bar.update(identifier, advance=done, note=note)

        yield task


@contextmanager
def _without_loading_bars() -> Iterator[None]:
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
