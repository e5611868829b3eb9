"""Imports go only downwards; the command line is fast because it imports nothing heavy."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Top to bottom: a file may import only from rows below its own, or from files of its own package row.
TABLE = [
    ["compress.__main__"],
    ["compress.cli"],
    ["compress.searching"],
    ["compress.explaining", "compress.reporting"],
    ["compress.fitting", "compress.measuring"],
    ["compress.evaluating"],
    ["exporters"],
    ["compress.stream"],
    ["compress.recipe"],
    ["compress.methods"],
    ["compress.loading"],
    ["compress.regression", "compress.source"],
    ["compress.symbolic", "compress.checkpoint", "compress.numerics"],
    ["compress.data", "compress.validation", "compress.architecture", "compress.plan", "compress.registry"],
    ["compress.nn", "compress.novella", "compress.clock", "compress.progress", "compress.version"],
    ["compress"],
]


def row(module: str) -> int:
    matches = [
        (len(name), index)
        for index, names in enumerate(TABLE)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    best = max(matches, default=None)
    assert best is not None, f"{module} is in no row of the import table"
    if best[1] == len(TABLE) - 1 and module != "compress":
        pytest.fail(f"{module} is in no row of the import table; add it")
    return best[1]


def modules():
    for top in ("compress", "exporters"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if name != "compress":  # its names are lazy
                yield name, path


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_imports_go_downwards(module, path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" if node.module == "compress" else node.module for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0] not in ("compress", "exporters") or name.startswith("compress.__"):
                continue
            own, other = row(module), row(name)
            assert own < other or (own == other and TABLE[own] != ["compress"]), f"{module} imports {name}, which is above it"


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
