"""Actions in forked processes that end at the n-th thing that happens to the disk, or at a moment of the clock.

The parent imports and never runs an action: a child begins with everything loaded, in milliseconds, and with no threads.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from compress.checkpoint import disk

KILLED, FAILED = 77, 78
Action = Callable[[], object]


def _child(action: Action, watch: disk.Watch, log: Path) -> int:
    """Fork; the child runs the action and ends without a word to anybody. Returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        with disk.watched(watch):
            action()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(FAILED)
    os._exit(0)


def _ended(pid: int) -> int:
    """Exit code of a child; minus the signal where one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def events(action: Action, log: Path) -> list[str]:
    """What happens to the disk in an undisturbed run, in order. Raises AssertionError with its output where it fails."""
    seen = log.with_suffix(".events")
    with seen.open("w") as file:

        def watch(moment: str, operation: str, path: Path) -> None:
            os.write(file.fileno(), f"{moment} {operation} {path}\n".encode())

        code = _ended(_child(action, watch, log))
    assert code == 0, log.read_text()
    return seen.read_text().splitlines()


def killed_at(action: Action, point: int, log: Path) -> bool:
    """Run an action that ends without warning at its n-th event, half of the bytes written where that is in a write.

    False where it was done before. Raises AssertionError where it fails.
    """
    left = [point]

    def watch(moment: str, operation: str, path: Path) -> None:
        if left[0] == 0:
            if moment == "amid":
                os.truncate(path, path.stat().st_size - _written(operation, path) // 2)
            os._exit(KILLED)
        left[0] -= 1

    code = _ended(_child(action, watch, log))
    assert code in (0, KILLED), log.read_text()
    return code == KILLED


def _written(operation: str, path: Path) -> int:
    """Bytes that an operation has put into a file: all of it, or the last line."""
    return len(path.read_bytes().splitlines(keepends=True)[-1]) if operation == "append" else path.stat().st_size


def killed_after(action: Action, seconds: float, log: Path) -> bool:
    """Run an action and kill it after this time; False where it was done before. Raises AssertionError where it fails."""
    pid = _child(action, lambda *_: None, log)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, log.read_text()
            return False
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    code = _ended(pid)
    assert code in (0, -signal.SIGKILL), log.read_text()
    return code != 0
