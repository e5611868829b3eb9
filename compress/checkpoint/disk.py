"""Every operation of ours that changes a disk. A test may watch them, and end the process before, in or after any one.

What other libraries write goes into a folder that is wholly ours, between two of these operations.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_UMASK = os.umask(0)  # can only be read by setting it
os.umask(_UMASK)

Watch = Callable[[str, str, Path], None]  # (before | amid | after, the operation, its path)
_watch: list[Watch] = []

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Inside, `watch` hears of every operation: before it, after it, and of a write when its bytes are there, unsynced."""
    _watch.append(watch)
    try:
        yield
    finally:
        _watch.remove(watch)


def _tell(moment: str, operation: str, path: Path) -> None:
    for watch in _watch:
        watch(moment, operation, path)


@contextlib.contextmanager
def _operation(name: str, path: Path) -> Iterator[None]:
    _tell("before", name, path)
    yield
    _tell("after", name, path)


def make(folder: Path) -> None:
    """Make a folder, and those above it, where they are not there."""
    if not folder.is_dir():
        with _operation("make", folder):
            folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """The body writes the file `path`; it is on disk when this returns."""
    with _operation("write", path):
        yield
        _tell("amid", "write", path)
        path.chmod(0o666 & ~_UMASK)  # safetensors writes for the owner alone
        sync(path)


def append(path: Path, line: str) -> None:
    """Add a line to a file; it is on disk when this returns."""
    with _operation("append", path), path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        _tell("amid", "append", path)
        os.fsync(file.fileno())


def move(source: Path, target: Path) -> None:
    """Rename, over what is there; the new name is on disk when this returns."""
    with _operation("move", target):
        source.replace(target)
        sync(target.parent)


def link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy of a symbolic link. Raises OSError where the file system has none."""
    with _operation("link", target):
        os.link(source, target, follow_symlinks=False)


def remove(path: Path) -> None:
    """Remove a file, a symbolic link or an empty folder; nothing where it is not there."""
    with _operation("remove", path):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


def remove_tree(path: Path, last: str = "") -> None:
    """Remove a file, or a folder with all that is in it, the entry named `last` after the others; never follows a link."""
    if path.is_dir() and not path.is_symlink():
        for entry in sorted(path.iterdir(), key=lambda entry: (entry.name == last, entry.name)):
            remove_tree(entry)
    if os.path.lexists(path):
        remove(path)


def exchange(one: Path, other: Path) -> bool:
    """Two folders take each other's names in one step; False, and nothing done, where the system or file system cannot."""
    call = _renameat2()
    if call is None:
        return False
    with _operation("exchange", other):
        done = call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
        if not done and (number := ctypes.get_errno()) in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise OSError(number, os.strerror(number), str(other))
        if done:
            sync(other.parent)
    return done


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders, and has their names on disk without it
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
