"""Methods, discovered by being there or by entry point `compress.methods`: one file, one class, named in YAML by its file name.

In: a group of modules with weights and statistics. Out: what replaces them.
"""

from __future__ import annotations

from compress.methods.base import Method
from compress.registry import Registry

registry: Registry[Method] = Registry("compress.methods", lambda: Method, "compress.methods", frozenset({"base"}))


def names() -> tuple[str, ...]:
    """Every method's name, without importing any of ours."""
    return registry.names()


def load(name: str) -> type[Method]:
    """The method class of a name. Raises KeyError for a name that is none."""
    return registry.load(name)
