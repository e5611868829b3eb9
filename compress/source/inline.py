"""Source text of classes together with what they need, so that a generated file can stand alone.

Only source that belongs to this package is copied; names from torch and the standard library come in by their import lines.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

PACKAGE = __name__.partition(".")[0]


@dataclass
class Inlined:
    """`definitions` by name, in an order in which each stands after what it needs; `imports` are whole lines."""

    definitions: dict[str, str] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)
    _begun: set[str] = field(default_factory=set)

    @property
    def text(self) -> str:
        return "\n\n\n".join(self.definitions.values())


def inline(objects: Iterable[Any]) -> Inlined:
    """The source of classes and functions of this package, each once, with the package's own definitions they use.

    >>> from compress.nn.mlp import IdentityMLP
    >>> list(inline([IdentityMLP]).definitions)
    ['Occupied', 'IdentityMLP']

    Raises ValueError for something that was not defined at the top of one of this package's modules.
    """
    out = Inlined()
    for item in objects:
        _define(item.__name__, sys.modules[item.__module__], out)
    return out


def import_block(lines: Iterable[str]) -> str:
    """Import lines as a formatter would leave them: merged by module, the standard library first, then the rest.

    >>> print(import_block(["from torch import nn", "import json", "from torch import Tensor"]))
    import json
    <BLANKLINE>
    from torch import Tensor, nn
    """
    plain: set[str] = set()
    names: dict[str, set[str]] = {}
    for statement in ast.parse("\n".join(lines)).body:
        if isinstance(statement, ast.ImportFrom):
            names.setdefault(str(statement.module), set()).update(ast.unparse(alias) for alias in statement.names)
        else:
            plain.add(ast.unparse(statement))
    merged = [*sorted(plain), *(f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names))]
    standard = [line for line in merged if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
    return "\n\n".join("\n".join(group) for group in (standard, [line for line in merged if line not in standard]) if group)


def _define(name: str, module: ModuleType, out: Inlined) -> None:
    if name in out._begun:  # done, or two definitions that name each other
        return
    out._begun.add(name)
    tree = ast.parse(source := inspect.getsource(module))
    for statement in tree.body:
        if name not in _bound(statement):
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            _import(name, statement, out)
        else:
            needed = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
            for other in sorted(needed - {name}):
                if hasattr(module, other):
                    _define(other, module, out)
            out.definitions[name] = _segment(source, statement)
        return
    raise ValueError(f"{name} is not defined at the top of {module.__name__}, so it cannot be copied into a file of its own")


def _import(name: str, statement: ast.Import | ast.ImportFrom, out: Inlined) -> None:
    if isinstance(statement, ast.ImportFrom) and (statement.module or "").partition(".")[0] == PACKAGE:
        _define(name, sys.modules[str(statement.module)], out)
        return
    alias = next(a for a in statement.names if (a.asname or a.name.partition(".")[0]) == name)
    source = f"from {statement.module} " if isinstance(statement, ast.ImportFrom) else ""
    out.imports.add(f"{source}import {ast.unparse(alias)}")


def _bound(statement: ast.stmt) -> set[str]:
    """Names a top-level statement gives a value to."""
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            return {name}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {a.asname or a.name.partition(".")[0] for a in names}
        case ast.Assign(targets=targets):
            return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def _segment(source: str, statement: ast.stmt) -> str:
    """The statement's lines, decorators included."""
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(d.lineno for d in decorators)])
    return "\n".join(source.splitlines()[first - 1 : statement.end_lineno])
