"""Runs cases and judges them: nothing executed, two seconds and 512 MB at most, refusals and no other exception."""

from __future__ import annotations

import gc
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing.targets import REFUSED, TURNS, targets

SECONDS, MIB = 2.0, 512
_RUNS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork", "pty.spawn"}
_watching: list[str] | None = None  # where the audit hook, which cannot be taken out again, notes what was run


@dataclass
class Outcome:
    """Of some cases: how many, how they ended, and what must not be, as text that names the case."""

    cases: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    peak_mib: float = 0.0
    executed: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    large: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    by_target: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching is not None and event in _RUNS:
        _watching.append(f"{event} {str(arguments)[:200]}")


sys.addaudithook(_hook)


def run(first: int, count: int, folder: Path, deadline: float | None = None) -> Outcome:
    """Cases `first` to `first + count`; case n, seeded by n, goes to the target whose turn it is. Stops at `deadline`."""
    global _watching
    cases, out = targets(folder), Outcome()
    place = folder / "place"
    place.mkdir(exist_ok=True)
    for name in cases:  # imports and caches are not a case's memory
        _case(cases[name], 0, place)
    gc.collect()
    gc.freeze()  # nor is a look through all that the process holds a case's time
    before = _peak_mib()
    for number in range(first, first + count):
        if deadline is not None and time.time() > deadline:
            break
        name = TURNS[number % len(TURNS)]
        _watching, started = [], time.process_time()
        ended = _case(cases[name], number, place)
        seconds, ran, _watching = time.process_time() - started, _watching, None
        grown = _peak_mib() - before
        out.cases += 1
        out.by_target[name] += 1
        out.refused += ended == "refused"
        out.slowest_s, out.peak_mib = max(out.slowest_s, seconds), max(out.peak_mib, grown)
        what = f"{name} {number}"
        out.executed += [f"{what}: {event}" for event in ran]
        out.slow += [f"{what}: {seconds:.1f} s"] * (seconds > SECONDS)
        out.large += [f"{what}: {grown:.0f} MiB"] * (grown > MIB and not out.large)
        out.tracebacks += [f"{what}: {ended}"] * (ended not in ("done", "refused"))
    gc.unfreeze()
    return out


def _case(case: Any, seed: int, place: Path) -> str:
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(120)
    try:
        case(random.Random(seed), place)
    except REFUSED as error:
        return "refused" if "Traceback" not in str(error) else str(error)
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:200]} at {Path(frame.filename).name}:{frame.lineno}"
    finally:
        signal.alarm(0)
    return "done"


def _too_long(*_: Any) -> None:
    raise TimeoutError("no answer in two minutes")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
