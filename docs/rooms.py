"""The rooms of the house, as their own `__init__` docstrings describe them: a line, then "In: … Out: …"."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

FORM = re.compile(r"(?P<what>[^\n]+)\n\nIn: (?P<takes>.+?) Out: (?P<gives>.+?)(\n\n.*)?", re.DOTALL)


@dataclass(frozen=True)
class Room:
    """One package directly under compress/ or exporters/."""

    path: str
    what: str
    takes: str
    gives: str


def rooms(root: Path) -> list[Room]:
    """Every room, by name. Raises ValueError for one whose docstring does not say what goes in and what comes out."""
    found = sorted((root / "compress").glob("*/__init__.py")) + sorted((root / "exporters").glob("*/__init__.py"))
    return [described(file.parent.relative_to(root).as_posix(), file) for file in found]


def described(path: str, init: Path) -> Room:
    """The room of one `__init__.py`."""
    doc = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
    match = FORM.fullmatch(doc)
    if match is None:
        raise ValueError(f"{path}/__init__.py: its docstring must be a line, an empty one, and `In: … Out: …`; it is {doc!r}")
    what, takes, gives = (" ".join(match[name].split()).removesuffix(".") for name in ("what", "takes", "gives"))
    return Room(path, what, takes, gives)
