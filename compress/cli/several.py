"""A command in several processes: which of them prints, and what is said when one ends."""

from __future__ import annotations

import os
import sys
import warnings

from compress.parallel import several

LOST = "failed: another process of this run has ended; finished units are kept: run the same command again to continue"
SEVERAL = ("fit",)  # commands that several processes may share


def is_first() -> bool:
    """Whether this process is to print: the only one, or the first of several, which are joined here."""
    if not several():
        return True
    from compress.parallel.world import world

    if not world().first:
        warnings.simplefilter("ignore")
    return world().first


def is_to_tell(text: str) -> bool:
    """Of several processes, the first to fail tells why; the others fail because of it."""
    if not several():
        return True
    from compress.parallel.world import world

    try:
        return world().failed(text)
    except Exception:  # not even joined, or the store is gone with the process that kept it
        return int(os.environ.get("RANK", "0")) == 0


def stopped(*_: object) -> None:
    """torchrun ends all processes when one of them has ended."""
    if is_to_tell(LOST):
        print(LOST, file=sys.stderr, flush=True)
    os._exit(1)


def leave() -> None:
    """The run is over, and went well."""
    from compress.parallel.world import world

    world().leave()
