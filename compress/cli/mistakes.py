"""What a person is told when a command ends early: one line per mistake, and an exit code that scripts can tell apart."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

from compress.checkpoint.lock import BusyError

_MISTAKES = (ValueError, NotImplementedError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)  # what moves a terminal's cursor or turns its text


def told(error: Exception) -> tuple[int, str]:
    """(exit code, text) of an error that left a command.

    >>> told(ValueError("length: 0 given"))
    (2, 'error: length: 0 given')
    """
    text = printable("\n".join(_lines(error)))
    if isinstance(error, OSError) and error.strerror and error.filename:  # without "[Errno 28]"
        text = printable(f"{error.strerror}: {error.filename}")
    if isinstance(error, _MISTAKES):
        return 2, f"error: {text}"
    if isinstance(error, BusyError):
        return 3, f"error: {text}"
    if isinstance(error, OSError) or _is_out_of_memory(error):
        return 3, f"error: {text.rstrip('.') or 'out of memory'}; nothing that was finished is lost: run the same command again"
    # A measured breach: parity, a loss that is not finite. A recursion without end is one of Python's own, and a bug.
    if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
        return 1, f"failed: {text}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    first = text.splitlines()[0] if text else ""
    return (
        70,
        f"bug: {type(error).__name__}: {first} ({where}); please report it: COMPRESS_TRACEBACK=1 shows where it came from",
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Python's own error, and torch's: on a GPU a RuntimeError of that name, on the CPU a bare one."""
    by_name = type(error).__name__ == "OutOfMemoryError"  # torch itself is not imported for this
    return isinstance(error, MemoryError) or by_name or "DefaultCPUAllocator: can't allocate memory" in str(error)


def printable(text: str) -> str:
    """Text without what a terminal would obey: names come from files of strangers."""
    return _CONTROL.sub("�", text)


def _lines(error: Exception) -> list[str]:
    """One line per mistake; pydantic's own text is several for each."""
    found: Any = getattr(error, "errors", None)
    if type(error).__module__.startswith("pydantic") and callable(found):
        items: Any = found()
        return [f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}" for item in items]
    return str(error).splitlines()
