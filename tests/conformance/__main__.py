"""The whole matrix: every method with every example, every kind, on every architecture, under every check.

    make conformance                       # goes on where it stopped; ARGS="--only latent_kv" passes options
    PYTHONPATH=tests python -m conformance --only feature_space --limit 20

A line for each case and check as it comes; the checks of a case share one fit. Checks that cost seconds come last, in cases of
their own. At the end the summary of everything known so far goes to docs/numbers/conformance.json; exit code 1 where
something failed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from checkpoints import LAYERS

from conformance import checks
from conformance.case import Case, kind_cases, method_cases
from conformance.elsewhere import ROOT, Elsewhere
from conformance.journal import Journal
from conformance.made import Sources
from conformance.outcome import outcomes
from conformance.slice import DEAR, kind_slice, method_slice
from conformance.summary import write_summary

JOURNAL = ROOT / "runs" / "conformance.jsonl"
SUMMARY = ROOT / "docs" / "numbers" / "conformance.json"


def matrix(seed: int) -> list[tuple[Case, tuple[str, ...]]]:
    """All of it: the pairwise slice, then the rest in seeded order, the dear last. Stopped anywhere, it is a fair sample."""
    cheap = tuple(name for name in checks.names() if checks.seconds(name) <= DEAR)
    dear = tuple(name for name in checks.names() if name not in cheap)
    cases = [*method_cases(), *kind_cases()]
    order = random.Random(seed)
    order.shuffle(cases)
    first = [part for part in (*method_slice(seed), *kind_slice()) if part[0].layers == LAYERS]
    order.shuffle(first)
    met = {(case, name) for case, names in first for name in names}
    rest = [(case, tuple(n for n in names if (case, n) not in met)) for names in (cheap, dear) for case in cases]
    return [*first, *rest]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="conformance", description="Every method and kind on every architecture.")
    parser.add_argument("--only", help="one method or random plan, by its name")
    parser.add_argument("--seed", type=int, default=0, help="of the random models and the order")
    parser.add_argument("--limit", type=int, help="stop after so many checks")
    parser.add_argument("--seconds", type=float, help="start no other case after so many seconds")
    parser.add_argument("--failed", action="store_true", help="run again what failed before")
    parser.add_argument("--journal", type=Path, default=JOURNAL, help="where outcomes are kept")
    parser.add_argument("--summary", type=Path, default=SUMMARY, help="where the table goes")
    given = parser.parse_args(arguments)
    whole = matrix(given.seed)
    names = {case.name for case, _ in whole}
    if given.only is not None and given.only not in names:
        parser.error(f"--only {given.only}: there are {', '.join(sorted(names))}")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # as the interpreters elsewhere: bit for bit is of the same order of sums
    journal = Journal(given.journal, given.seed)
    done = 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        sources, elsewhere = Sources(Path(folder), given.seed), Elsewhere(Path(folder))
        try:
            for case, wanted in whole:
                late = given.seconds is not None and time.perf_counter() - started > given.seconds
                if late or (given.limit is not None and done >= given.limit):
                    break
                if given.only not in (None, case.name):
                    continue
                for outcome in outcomes(case, _open(journal, case, wanted, again=given.failed), sources, elsewhere):
                    print(outcome, flush=True)
                    journal.add(outcome)
                    done += 1
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
        finally:
            elsewhere.close()
    print(write_summary(given.summary, journal.known, [(case, name) for case, wanted in whole for name in wanted]))
    return 1 if any(outcome.status == "FAIL" for outcome in journal.known.values()) else 0


def _open(journal: Journal, case: Case, names: Sequence[str], *, again: bool) -> list[str]:
    """The checks of a case that have no outcome yet; failures too, where they are to be run again."""
    known = {name: journal.known.get((case, name)) for name in names}
    return [name for name, found in known.items() if found is None or (again and found.status == "FAIL")]


if __name__ == "__main__":
    sys.exit(main())
