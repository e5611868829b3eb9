"""Ranks as torchrun would start them, forked from here: they begin with everything imported."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from compress.parallel import world as worlds

FAILED = 78


def start(size: int, action: Callable[[int], object], logs: Path) -> list[int]:
    """Process ids of `size` ranks that each run action(rank); what they print is in logs/<rank>."""
    logs.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [_forked(rank, size, port, action, logs / str(rank)) for rank in range(size)]


def _forked(rank: int, size: int, port: int, action: Callable[[int], object], log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    # Both: pytest reads what goes to the descriptors, and has put objects of its own in front of them.
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    for descriptor in (1, 2):
        os.dup2(sys.stderr.fileno(), descriptor)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    worlds.world.cache_clear()
    # A dead one is to be noticed within seconds.
    worlds.BEAT, worlds.LOST = 0.2, 4.0
    code = 0
    try:
        action(rank)
        if worlds.world.cache_info().currsize:
            worlds.world().leave()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        code = FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(pids: list[int], seconds: float = 120) -> list[int]:
    """Exit codes, minus the signal where one ended it; what still runs after `seconds` is killed."""
    until, codes = time.monotonic() + seconds, dict[int, int]()
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (status := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(status[1])
        if time.monotonic() > until:
            for pid in pids:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]
