"""The core asks contracts: no string equal to a method's or a kind's name stands outside that one's own file."""

import ast
from pathlib import Path

import pytest

from compress import kinds, methods

ROOT = Path(__file__).parents[1]
FILES = [path for top in ("compress", "exporters") for path in sorted((ROOT / top).rglob("*.py"))]


def strings(path: Path) -> set[str]:
    """The string constants of a file; a docstring is never equal to a name."""
    return {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_names_a_method_or_a_kind_but_its_own(path):
    assert strings(path) & {*methods.names(), *kinds.names()} <= {path.stem}


def test_the_registries_name_their_files():
    for registry in (methods.registry, kinds.registry):
        for name in registry.names():
            assert registry.load(name).__module__.rpartition(".")[2] == name
    assert all(kinds.load(name).kind == name for name in kinds.names())
    assert not {"surrogate", "base", "contract", "low_rank"} & {*methods.names(), *kinds.names()}
