"""The checks, one property a file, discovered by being there: `check(made, elsewhere)` raises AssertionError or Refused.

A file's first docstring line is the property, in words; `SECONDS` is about what it costs on an idle core; `exempt(case)`, where
it is there, says why a case has nothing to check. What does not hold for a method is written next to the method.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from conformance.case import Case
from conformance.elsewhere import Elsewhere
from conformance.made import Made

Check = Callable[[Made, Elsewhere], None]


@cache
def _modules() -> dict[str, Any]:
    files = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if not file.stem.startswith("_"))
    found = {name: import_module(f"conformance.checks.{name}") for name in files}
    return dict(sorted(found.items(), key=lambda item: (item[1].SECONDS, item[0])))


def names() -> tuple[str, ...]:
    """Every check, the cheapest first."""
    return tuple(_modules())


def load(name: str) -> Check:
    return _modules()[name].check


def seconds(name: str) -> float:
    return _modules()[name].SECONDS


def says(name: str) -> str:
    """The property, in a line."""
    return str(_modules()[name].__doc__).splitlines()[0]


def exemption(name: str, case: Case) -> str | None:
    """Why a check is not held by a case; None where it is."""
    keys = (name, f"{name}:{case.architecture}", f"*:{case.architecture}")
    written = next((case.declared[key] for key in keys if key in case.declared), None)
    return written or getattr(_modules()[name], "exempt", lambda case: None)(case)
