"""One writer per folder: a second one is told who the first is."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from compress.checkpoint.beside import beside

try:
    import fcntl
except ImportError:  # Windows has no such locks: two runs on one output are the user's to avoid there
    fcntl = None


class BusyError(RuntimeError):
    """Another run is writing to the folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `.NAME.lock` beside the folder NAME; it goes with the process, however that ends.

    Raises BusyError naming the process that holds it. File systems without locks are used without.
    """
    file = beside(folder, ".", ".lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _taken(file, folder)
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # Windows removes no open file
            file.unlink(missing_ok=True)  # while it is held: who has opened it sees that it is gone, and makes another
        os.close(descriptor)


def _taken(file: Path, folder: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise BusyError(
                    f"another run (process {holder or 'unknown'}) is writing to {folder}; wait for it, or give another output"
                ) from None
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            descriptor = os.open(file, os.O_RDWR)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
        os.close(descriptor)  # the holder before was just done, and took the file with it
