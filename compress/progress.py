"""How long work tells how far it is; the command line draws bars, a library user passes a function or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Tick(Protocol):
    """Called after each part of a task: `done` more parts are finished, `note` is what to show beside the bar."""

    def __call__(self, note: str = "", done: int = 1) -> None: ...


Progress = Callable[[str, int], Tick]  # (description, number of parts) → what to call after each part


def silent(description: str, total: int) -> Tick:
    return lambda note="", done=1: None
