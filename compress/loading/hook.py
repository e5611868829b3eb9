"""Registers the "compress" quantizer as soon as transformers is imported, without importing it (or torch) itself.

torch calls `install` at the end of `import torch` (entry point group `torch.backends`), and `import compress` calls it too.
It must be fast, use only the standard library, and never raise: a broken hook would break every program that imports torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import PathFinder

# Neither typing nor importlib.abc, whose bases the finder and the loader do without: together they take longer than the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# The second is for programs whose very first import is the first one: torch, and with it `install`, comes in its middle.
_TRIGGERS = ("transformers.quantizers.auto", "transformers.modeling_utils")


def _register() -> None:
    """Does nothing in the middle of the import of transformers' tables: the next trigger comes after it."""
    if hasattr(sys.modules.get(_TRIGGERS[0]), "register_quantizer"):
        import_module("compress.loading.quantizer")  # registers at its end


class _RegisteringLoader:
    """Runs the module as its own loader does, then registers."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then register. What goes wrong in registering is told on stderr, never raised."""
        self.loader.exec_module(module)
        try:
            _register()
        except Exception as error:  # a program that never loads our checkpoints must not notice us
            _complain(error)

    def __getattr__(self, name: str) -> Any:
        # Tools ask a loader for more than these two methods, such as get_source: its own has the answers.
        return getattr(self.loader, name)


class _Finder:
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of a trigger with a loader that registers; None for all other modules."""
        if fullname not in _TRIGGERS:
            return None
        # PathFinder itself: importlib would ask all finders again, this one among them.
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)  # pyright: ignore[reportAttributeAccessIssue] - no importlib.abc here
        return spec


def install() -> None:
    """Place the finder once; register at once where transformers is already there."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # In front, since the first finder that knows a module is the one that loads it.
        sys.meta_path.insert(0, _Finder())
    try:
        _register()
    except Exception as error:
        _complain(error)


def _complain(error: Exception) -> None:
    print(f"compress: could not register with transformers ({type(error).__name__}: {error})", file=sys.stderr)
