"""Kill every command at every operation on the disk, and at random times; a row per command, as it is done.

    cd tests && python -m reliability [--points N] [--random N] [--summary FILE] [COMMAND …]

Writes how many kills there were, by command, into the values of docs/numbers/reliability.json (or --summary). The first outcome
that is wrong is an AssertionError that names the operation.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from reliability.commands import COMMANDS
from reliability.trial import Trial

SUMMARY = Path(__file__).parents[2] / "docs" / "numbers" / "reliability.json"


def tried(name: str, points: int | None, by_clock: int) -> dict[str, Any]:
    """One command: kills at `points` of its operations (all without), and at `by_clock` random times, in chains of up to 3."""
    choose = random.Random(name)
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(COMMANDS[name], Path(folder))
        known = range(len(trial.events))
        chosen = known if points is None else sorted(choose.sample(known, min(points, len(known))))
        died = sum(trial.kill_at(point) for point in chosen)
        started = time.perf_counter()
        trial.kill_after(10**6)  # an undisturbed run: how long one takes here
        seconds = time.perf_counter() - started
        late = 0
        for _ in range(by_clock):
            late += trial.kill_after(*(choose.uniform(0, seconds) for _ in range(choose.randint(1, 3))))
    return {"points": len(known), "killed": died, "by_clock": late, "wrong": 0}


def main() -> None:
    """Run the commands that are named, or all."""
    parser = argparse.ArgumentParser(description="Kill every command at every operation on the disk, and at random times.")
    parser.add_argument("names", nargs="*", metavar="COMMAND", help=f"default: all of {', '.join(COMMANDS)}")
    parser.add_argument("--points", type=int, help="so many operations per command, drawn at random; default: all")
    parser.add_argument("--random", type=int, default=25, help="kills by the clock, per command")
    parser.add_argument("--summary", type=Path, default=SUMMARY)
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in COMMANDS]:
        parser.error(f"unknown command {unknown[0]!r}; there are {', '.join(COMMANDS)}")
    for name in given.names or COMMANDS:
        row = tried(name, given.points, given.random)
        print(f"{name:<32}{row['points']:>5} operations {row['killed']:>5} kills {row['by_clock']:>4} by the clock", flush=True)
        summary = json.loads(given.summary.read_text(encoding="utf-8"))
        summary["values"][name] = row
        summary["values"]["all"] = {
            key: sum(each[key] for what, each in summary["values"].items() if what != "all") for key in row
        }
        given.summary.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
