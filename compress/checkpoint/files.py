"""Files written whole or not at all, and what identifies them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from compress.checkpoint import disk
from compress.reading import json_text


def hash_json(value: Any) -> str:
    """sha256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's content."""
    stat = path.stat()
    return _hash_content(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)  # for this process alone: a run asks for the same shards several times
def _hash_content(path: Path, *_: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling; on success it is synced and renamed over `path`, on failure removed."""
    disk.make(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with disk.writing(temporary):
            yield temporary
        disk.move(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep_parts(folder: Path, names: Container[str] | None = None) -> None:
    """Remove what `atomic` left in a folder, of files with these names, or anywhere below it, in processes that are no more."""
    for left in folder.rglob(".*.part") if names is None else folder.glob(".*.part"):
        name, _, number = left.name[1:].removesuffix(".part").rpartition(".")
        if number.isdigit() and (names is None or name in names) and not _is_alive(int(number)):
            disk.remove(left)


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # it was written under the lock that this process holds now: by an earlier one of the same number
    if os.name == "nt":
        return True  # asking there would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # it is somebody else's, or cannot be asked: left alone
    return True


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, sort_keys: bool = False) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False, sort_keys=sort_keys) + "\n")


def read_json(path: Path) -> Any:
    """The file's value, or None where it is missing, no JSON, or beyond the limits of `compress.reading`."""
    try:
        return json_text.read(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
