"""What one check says of one case: pass, exempt with its reason, refused with the message, or FAIL with what went wrong."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from conformance import checks
from conformance.case import Case, names_what_is_supported
from conformance.elsewhere import Elsewhere
from conformance.made import Made, Refused, Sources

Status = Literal["pass", "exempt", "refused", "FAIL"]


@dataclass(frozen=True)
class Outcome:
    """One line of the journal."""

    case: Case
    check: str
    status: Status
    message: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        told = f"{self.status}: {self.message}" if self.message else self.status
        return f"{self.case!s:44} {self.check:10} {told} ({self.seconds:.2f} s)"

    def to_json(self, seed: int) -> dict[str, Any]:
        """As `asdict`, with the case's own fields beside the others, and the seed."""
        flat = asdict(self)
        return {"seed": seed, **flat.pop("case"), **flat}


def outcomes(case: Case, names: Iterable[str], sources: Sources, elsewhere: Elsewhere) -> Iterator[Outcome]:
    """The checks of one case, on one checkpoint that is made by the first of them that needs it and removed at the end."""
    root = Path(tempfile.mkdtemp(prefix="case-", dir=sources.root))
    made = Made(case, root, sources)
    try:
        for name in names:
            if (reason := checks.exemption(name, case)) is not None:
                yield Outcome(case, name, "exempt", reason)
                continue
            started = time.perf_counter()
            status, message = judge(name, made, elsewhere)
            yield Outcome(case, name, status, message, round(time.perf_counter() - started, 3))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def judge(name: str, made: Made, elsewhere: Elsewhere) -> tuple[Status, str]:
    """Runs one check, whether or not the case is exempt from it."""
    try:
        checks.load(name)(made, elsewhere)
    except Refused as refusal:
        message = str(refusal)
        if names_what_is_supported(message, made.case.architecture):
            return "refused", message
        return "FAIL", f"refused without saying what is supported: {message}"
    except Exception as error:  # a matrix goes on
        return "FAIL", f"{type(error).__name__}: {error}"
    return "pass", ""
