"""What is discovered by being there: one file, one class, named by the file; and by entry points of other packages.

A package that cannot be imported is named in one line on the log, and the others go on.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
log = logging.getLogger("compress")


@dataclass
class Registry(Generic[T]):
    """Subclasses of one base: a file each under the folder of `package` (no underscore in front), or an entry point of `group`.

    >>> from compress.methods import registry
    >>> registry.names()[:2]
    ('affine_mlp', 'crystallized_attention')
    """

    package: str  # the room whose files are searched, its folders included
    base: Callable[[], type[T]]  # called when the first class is loaded: names are known without importing any
    group: str  # entry points of other packages, name = "module:Class"
    leave_out: frozenset[str] = frozenset()  # files that are no member
    name_of: Callable[[type[T]], str | None] = lambda _: None  # what a class says its own name is, where it does
    _loaded: dict[str, type[T]] = field(default_factory=dict)
    _modules: dict[str, str] | None = None
    _foreign: dict[str, EntryPoint] | None = None

    def names(self) -> tuple[str, ...]:
        """Every name, sorted, without importing our own; another package is imported once, to leave out what does not load."""
        return tuple(sorted({*self._own(), *self._others()}))

    def load(self, name: str) -> type[T]:
        """The class of a name. Raises KeyError for a name that is none."""
        if name not in self._loaded:
            own = self._own()
            if name not in own and name not in self._others():
                raise KeyError(name)
            if name in own:
                self._loaded[name] = self._only_class(own[name])
        return self._loaded[name]

    def source_hash(self, name: str) -> str:
        """Hash of all source of another package, by its class: what it made is not taken over once it changed; "" for ours."""
        member = self.load(name)
        top = member.__module__.partition(".")[0]
        if top == self.package.partition(".")[0]:
            return ""
        file = Path(str(getattr(sys.modules[top], "__file__", None) or ""))
        if not file.is_file():  # registered in a notebook: its own text alone
            return hashlib.sha256(inspect.getsource(member).encode()).hexdigest()
        # A helper beside the class counts as the class does.
        files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
        return hashlib.sha256(b"\0".join(part.read_bytes() for part in files)).hexdigest()

    def register(self, name: str, member: type[T]) -> None:
        """Add a class by hand, for this process: from a notebook, or a test."""
        self._others()
        self._loaded[name] = member
        self._own()[name] = member.__module__

    def unregister(self, name: str) -> None:
        """Take back what `register` added."""
        del self._loaded[name], self._own()[name]

    def forget(self) -> None:
        """Look again at the next call: packages may have come or gone."""
        self._loaded.clear()
        self._modules = self._foreign = None

    def _own(self) -> dict[str, str]:
        if self._modules is None:
            root = Path(str(import_module(self.package).__file__)).parent
            files = [file for file in root.rglob("*.py") if not file.name.startswith("_") and file.stem not in self.leave_out]
            dotted = {file.stem: ".".join([self.package, *file.relative_to(root).with_suffix("").parts]) for file in files}
            self._modules = dotted
        return self._modules

    def _others(self) -> dict[str, EntryPoint]:
        if self._foreign is None:
            self._foreign = {}
            for entry in entry_points(group=self.group):
                if entry.name in self._own():
                    log.warning("%s: entry point %s is a name of our own; left out", self.group, entry.name)
                    continue
                try:
                    found = entry.load()
                    if not (inspect.isclass(found) and issubclass(found, self.base())):
                        raise TypeError(f"{entry.value} is no subclass of {self.base().__name__}")
                    if self.name_of(found) not in (None, entry.name):
                        raise TypeError(f"{entry.value} calls itself {self.name_of(found)!r}; name its entry point so")
                except Exception as error:  # somebody else's package: ours must go on
                    log.warning(
                        "%s: %s could not be loaded and is left out (%s: %s)",
                        self.group,
                        entry.name,
                        type(error).__name__,
                        error,
                    )
                    continue
                self._foreign[entry.name], self._loaded[entry.name] = entry, found
        return self._foreign

    def _only_class(self, module: str) -> type[T]:
        loaded = import_module(module)
        members = [value for _, value in inspect.getmembers(loaded, inspect.isclass) if value.__module__ == module]
        found = [value for value in members if issubclass(value, self.base())]
        if len(found) != 1:
            raise TypeError(f"{module} must define exactly one {self.base().__name__}; it has {[c.__name__ for c in found]}")
        return found[0]
