"""The outcomes so far: a line of JSON each, written as they come, so that a run that stops goes on where it was."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from conformance.case import Case
from conformance.outcome import Outcome

Key = tuple[Case, str]


class Journal:
    """The file of one matrix; outcomes of another seed in it are neither read nor counted."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed = path, seed
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        lines, self._broken = text.splitlines(), bool(text) and not text.endswith("\n")
        rows = [row for row in map(_row, lines) if row is not None and row["seed"] == seed]
        self.known: dict[Key, Outcome] = {(found.case, found.check): found for found in map(_outcome, rows)}  # the last counts

    def add(self, outcome: Outcome) -> None:
        self.known[outcome.case, outcome.check] = outcome
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            # A killed run may have left half a line: it must not spoil this one.
            file.write("\n" * self._broken + json.dumps(outcome.to_json(self.seed)) + "\n")
        self._broken = False


def _row(line: str) -> dict[str, Any] | None:
    """None for a last line that a killed run did not finish."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _outcome(row: dict[str, Any]) -> Outcome:
    own = {field.name for field in fields(Case)}
    case = Case(**{name: value for name, value in row.items() if name in own})
    return Outcome(case, **{name: row[name] for name in ("check", "status", "message", "seconds")})
