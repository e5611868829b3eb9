"""What a stranger writes is read or refused in a line: nothing runs, nothing takes two seconds or 512 MB."""

from __future__ import annotations

from pathlib import Path

from long import LONG

from fuzzing.run import run


def test_random_damage_is_refused_in_a_line(tmp_path: Path) -> None:
    found = run(0, 100_000 if LONG else 420, tmp_path)
    assert (found.executed, found.slow, found.large, found.tracebacks) == ([], [], [], [])
    assert len(found.by_target) == 7
    assert 0.2 < found.refused / found.cases < 0.98, "cases that are all refused, or none, test one line"
