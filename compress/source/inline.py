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

OURS = __name__.partition(".")[0]  # definitions of this package are copied, and those of the package a class comes from


@dataclass
class Inlined:
    """`definitions` by name, in an order in which each stands after what it needs; `imports` are whole lines."""

    definitions: dict[str, str] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)
    packages: set[str] = field(default_factory=lambda: {OURS})
    _begun: set[tuple[str, str]] = field(default_factory=set)  # (module, name)

    @property
    def text(self) -> str:
        """The definitions as they stand in a file."""
        return "\n\n\n".join(self.definitions.values())


def inline(objects: Iterable[Any]) -> Inlined:
    """The source of classes and functions, each once, with the definitions of their own package and of this one that they use.

    >>> from compress.nn.mlp import IdentityMLP
    >>> list(inline([IdentityMLP]).definitions)
    ['Occupied', 'IdentityMLP']

    Raises ValueError for something that was not defined at the top of one of this package's modules.
    """
    out = Inlined()
    for item in objects:
        # A kind of another package may use helpers of its own, which are copied as well.
        out.packages.add(item.__module__.partition(".")[0])
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
    # `import x` or `from x import y`: either way the second word is the module.
    standard = [line for line in merged if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
    return "\n\n".join("\n".join(group) for group in (standard, [line for line in merged if line not in standard]) if group)


def refuse_twice(source: str) -> str:
    """`source`, a generated file. Raises ValueError where it defines a name twice: the later one would stand for both.

    >>> refuse_twice("class MLP: ...\\nclass MLP: ...")
    Traceback (most recent call last):
    ValueError: the generated file has two definitions of MLP; a kind that is copied there must rename its own
    """
    seen: set[str] = set()
    for statement in ast.parse(source).body:
        names = _bound(statement)
        # An import may come twice; two definitions of one name would silently be the second.
        if not isinstance(statement, ast.Import | ast.ImportFrom) and (twice := sorted(names & seen)):
            raise ValueError(
                f"the generated file has two definitions of {twice[0]}; a kind that is copied there must rename its own"
            )
        seen |= names
    return source


def _define(name: str, module: ModuleType, out: Inlined) -> None:
    """Raises ValueError for a name that is not there, or that two modules define differently: one file has one of each."""
    if (module.__name__, name) in out._begun:  # done, or two definitions that name each other
        return
    out._begun.add((module.__name__, name))
    tree = ast.parse(source := inspect.getsource(module))
    for statement in tree.body:
        if name not in _bound(statement):
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            _import(name, statement, module, out)
            return
        needed = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        for other in sorted(needed - {name}):
            # Builtins and local names are no attributes of the module.
            if hasattr(module, other):
                _define(other, module, out)
        # Only now: what it needs has been added before it, so the order of the dict is one to define things in.
        text = _segment(source, statement)
        if out.definitions.setdefault(name, text) != text:
            raise ValueError(f"{module.__name__}.{name} and another {name} cannot stand in one file; rename one of them")
        return
    raise ValueError(f"{name} is not defined at the top of {module.__name__}, so it cannot be copied into a file of its own")


def _import(name: str, statement: ast.Import | ast.ImportFrom, module: ModuleType, out: Inlined) -> None:
    """What an import brings: a definition of a package that is copied, or the import's own line."""
    if isinstance(statement, ast.ImportFrom):
        alias = next(a for a in statement.names if (a.asname or a.name) == name)
        package = ".".join(module.__name__.split(".")[: -statement.level]) if statement.level else ""  # of a relative import
        origin = f"{package}.{statement.module or ''}".strip(".")
        if origin.partition(".")[0] in out.packages:
            _define(alias.name, sys.modules[origin], out)
            if alias.asname:  # known here under another name
                out.definitions.setdefault(name, f"{name} = {alias.name}")
            return
        out.imports.add(f"from {origin} import {ast.unparse(alias)}")
        return
    alias = next(a for a in statement.names if (a.asname or a.name.partition(".")[0]) == name)
    out.imports.add(f"import {ast.unparse(alias)}")


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
    # A definition's lineno is that of `def` or `class`; its decorators stand above.
    first = min([statement.lineno, *(d.lineno for d in decorators)])
    return "\n".join(source.splitlines()[first - 1 : statement.end_lineno])
