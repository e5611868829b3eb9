"""Imports go only downwards; the command line is fast because it imports nothing heavy."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Floors, top to bottom: a room's files import from rooms on floors below, and from files of the same room.
FLOORS = [
    ["__main__"],
    ["cli"],
    ["api"],
    ["searching", "explaining"],
    ["reporting", "fitting", "measuring"],
    ["evaluating"],
    ["exporters", "recipe", "stream"],
    ["methods", "loading"],
    ["kinds", "regression"],
    ["symbolic", "source", "checkpoint", "compute", "numerics", "data", "registry", "plan"],
    ["nn", "architecture", "clock", "bars", "packaged", "texts", "validation", "version"],
    ["beginning", "novella"],
    ["reading", "child", "markdown"],
    ["parallel", "progress"],
]


def room(module: str) -> str:
    """The first folder or file below `compress`; `exporters` is one room."""
    top, *rest = module.split(".")
    return rest[0] if top == "compress" and rest else top


def modules() -> dict[str, Path]:
    found = {}
    for top in ("compress", "exporters"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if name != "compress":  # its names are lazy
                found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports anywhere, in functions and for type checking too."""
    known, names = modules(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in known else node.module for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name in known}


@pytest.mark.parametrize(("module", "path"), modules().items(), ids=lambda v: v if isinstance(v, str) else "")
def test_imports_go_downwards(module, path):
    floor = {name: height for height, names in enumerate(FLOORS) for name in names}
    for name in imports(path):
        own, other = room(module), room(name)
        assert own in floor, f"{own} is on no floor; add it"
        assert own == other or floor[own] < floor[other], f"{module} imports {name}, which is above it or beside it"


def test_no_two_files_import_each_other_in_a_circle():
    graph = {module: imports(path) for module, path in modules().items()}
    while leaves := [module for module, below in graph.items() if not below]:
        for leaf in leaves:
            del graph[leaf]
        for below in graph.values():
            below.difference_update(leaves)
    assert not graph, f"files in a circle, or above one: {sorted(graph)}"


def test_help_loads_no_torch_and_is_quick():
    code = "import sys, compress.cli.main as cli; sys.argv = ['compress', '--help']\ntry: cli.main()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'sympy', 'numpy'} & set(sys.modules), 'heavy import'"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("fit", "export", "bench", "methods", "recipes"):
        assert command in done.stdout
    assert (
        time.perf_counter() - started < 5
    )  # a guard against heavy imports on a loaded machine; the README quotes the measured time
