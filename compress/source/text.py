"""Templates of generated source."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import dedent, indent


def text(block: str) -> str:
    """A template without its common indentation and outer blank lines."""
    return dedent(block).strip("\n")


def in_place(lines: Sequence[str], spaces: int) -> str:
    """Lines to stand in a template at an indentation of `spaces`, where the first one is indented already."""
    return indent("\n".join(lines), " " * spaces).lstrip()
