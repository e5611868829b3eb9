"""The journal as a table of docs/numbers: a row per method and per kind, a column per check, `passed/held` in the cells."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conformance import checks
from conformance.journal import Key
from conformance.outcome import Outcome

HEADS = {
    "again": "saved again",
    "memory": "as in memory",
    "monotone": "monotone",
    "onnx": "ONNX",
    "plain": "stops without",
    "resumed": "resumed",
    "standalone": "torch file",
    "stock": "stock load",
    "trusted": "trusted load",
    "whole": "full rank",
}


def write_summary(path: Path, known: Mapping[Key, Outcome], whole: Sequence[Key]) -> str:
    """Write the table of what is known of the whole matrix; returns it in a sentence. Refusals and exemptions are answers that
    were looked for, too.
    """
    told = [known[key] for key in whole if key in known]
    counts = {status: sum(outcome.status == status for outcome in told) for status in ("pass", "exempt", "refused", "FAIL")}
    names = {what: list(dict.fromkeys(sorted(c.name for c, _ in whole if c.what == what))) for what in ("method", "kind")}
    by_cell: dict[tuple[str, str, str], list[Outcome]] = defaultdict(list)
    for outcome in told:
        by_cell[outcome.case.what, outcome.case.name, outcome.check].append(outcome)
    rows: list[dict[str, Any]] = []
    values: dict[str, dict[str, str | None]] = {}
    for what, heading in (("method", "*methods*"), ("kind", "*kinds, under random plans*")):
        rows.append({"label": heading})
        for name in names[what]:
            key = f"{what}_{name}"
            rows.append({"label": f"`{name}`", "key": key})
            values[key] = {check: _cell(by_cell[what, name, check]) for check in checks.names()}
    table = {
        "caption": (
            "Cases that hold a property, of those where it was checked. A case is a method with one of its examples, or a "
            "random plan of a kind, on one of {architectures} architectures; where a method refuses an architecture or is "
            "exempt from a check, the reason is in its own file. {run:,} of {all:,} cells of the matrix have an answer so far: "
            "{passed:,} pass, {exempt:,} are exempt, {refused:,} are refused with a message that names what is supported, "
            "{failed:,} fail:"
        ),
        "source": {
            "command": "make conformance",
            "machine": f"{os.cpu_count()}-core machine",
            "commit": _commit(path.parent),
            "date": time.strftime("%Y-%m-%d"),
            "note": "It goes on where it stopped; the commit is the one that the last part was run on.",
        },
        "figures": {
            "architectures": len({case.architecture for case, _ in whole}),
            "run": len(told),
            "all": len(whole),
            "passed": counts["pass"],
            "exempt": counts["exempt"],
            "refused": counts["refused"],
            "failed": counts["FAIL"],
        },
        "label": "",
        "columns": [{"key": name, "head": HEADS.get(name, name)} for name in checks.names()],
        "rows": rows,
        "values": values,
    }
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    failed = sorted({f"{o.case.name}: {o.check}" for o in told if o.status == "FAIL"})
    return f"{len(told)} of {len(whole)} cells: {counts}" + "".join(f"\n  FAIL {name}" for name in failed)


def _cell(told: Sequence[Outcome]) -> str | None:
    """passed/held; a word where nothing was held; null where nothing was asked yet."""
    held = [outcome for outcome in told if outcome.status in ("pass", "FAIL")]
    if held:
        return f"{sum(outcome.status == 'pass' for outcome in held)}/{len(held)}"
    return told[0].status if told else None


def _commit(folder: Path) -> str | None:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
