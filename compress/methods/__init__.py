"""Methods, discovered by being there: one file, one class, named in YAML by its file name."""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module
from pathlib import Path

from compress.methods.base import Method

_NOT_METHODS = {"__init__", "base", "low_rank"}


@cache
def names() -> tuple[str, ...]:
    """Every method's name, without importing any."""
    return tuple(sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _NOT_METHODS))


def load(name: str) -> type[Method]:
    """The method class of one file. Raises KeyError for a name that is none."""
    if name not in names():
        raise KeyError(name)
    module = import_module(f"compress.methods.{name}")
    found = [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one Method; it has {[c.__name__ for c in found]}")
    return found[0]
