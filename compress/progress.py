"""How long work tells how far it is; the command line draws bars, a library user passes a function or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Tick(Protocol):
    """Called after each part of a task: `done` more parts are finished, `note` is what to show beside the bar."""

    def __call__(self, note: str = "", done: int = 1) -> None: ...


Progress = Callable[[str, int], Tick]  # (description, number of parts) → what to call after each part


def silent(description: str, total: int) -> Tick:
    return lambda note="", done=1: None


class Log:
    """What a caller does with finished searches; this one forgets them."""

    def read(self, key: str) -> Any:
        """What was written under the key, or None."""

    def write(self, key: str, found: Any) -> None:
        """Keep a finished search: JSON values."""

    def tell(self, text: str) -> None:
        """Show how far the searches are."""
