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
    ["compress.cli"],
    ["compress.cli_measure", "compress.cli_expressions"],
    ["compress.console"],
    ["compress.layer_choice", "compress.explanation"],
    ["compress.tables", "compress.verify", "compress.report", "compress.page", "compress.plots"],
    ["compress.columns", "compress.cells", "compress.summary", "compress.labels"],
    ["compress.search", "compress.sweep", "compress.distillation", "compress.expressions"],
    ["compress.token_function"],
    ["compress.trials", "compress.candidates"],
    ["compress.splits"],
    ["compress.run", "compress.bench", "compress.blocks"],
    ["compress.card", "compress.remote_code"],
    ["compress.variants", "compress.latency", "compress.quality", "compress.probe"],
    ["compress.runtimes", "compress.accounting", "compress.machine", "compress.measure"],
    ["exporters"],
    ["compress.inline"],
    ["compress.refine", "compress.finetune", "compress.speed"],
    ["compress.first_pass", "compress.assembly", "compress.channel_order", "compress.pairs", "compress.clamping"],
    ["compress.units"],
    ["compress.streaming", "compress.taps", "compress.residuals"],
    ["compress.evaluate", "compress.tasks"],
    ["compress.recipe"],
    ["compress.decision_log"],
    ["compress.checkpoint", "compress.memory", "compress.mistakes"],
    ["compress.methods"],
    ["compress.hf"],
    ["compress.data", "compress.novella"],
    ["compress.equal_cost"],
    ["compress.architecture", "compress.plan", "compress.engine", "compress.rotary"],
    ["compress.nn"],
    ["compress.numerics"],
    ["compress.progress"],
    ["compress.autoload"],
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
    code = "import sys, compress.cli; sys.argv = ['compress', '--help']\ntry: compress.cli.main()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'sympy', 'numpy'} & set(sys.modules), 'heavy import'"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("fit", "export", "bench", "methods", "recipes"):
        assert command in done.stdout
    assert (
        time.perf_counter() - started < 5
    )  # a guard against heavy imports on a loaded machine; the README quotes the measured time
