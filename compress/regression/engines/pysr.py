"""PySR (Cranmer, arXiv:2305.01582), the published engine; optional, because it brings Julia.

It runs in a process of its own: Julia and torch in one process are known to crash, and importing pysr without Julia fails in
many ways. This file is both sides: `prepare` writes the rows and starts `python -m compress.regression.engines.pysr FOLDER`,
which fits and leaves PySR's hall_of_fame.csv. Never reads PySR's pickles, never calls its sympify.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.child import command as child_command
from compress.regression.engines import Proposal, Search
from compress.regression.front import Candidate, Front
from compress.symbolic.equation import read_equation

if TYPE_CHECKING:
    from compress.regression.options import EngineOptions

_BINARY = {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "^", "max": "max", "min": "min", "mod": "mod"}
_UNARY = (
    *(
        "neg",
        "inv",
        "square",
        "cube",
        "sqrt",
        "cbrt",
        "abs",
        "sign",
        "exp",
        "log",
        "log2",
        "log10",
        "log1p",
        "relu",
        "floor",
        "ceil",
    ),
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf"),
)
OPERATORS = {*_BINARY, *_UNARY}
_OUTPUT = "search"
_WAY_OUT = "pip install 'compress[pysr]' brings it (Julia is downloaded once), or use engine: {name: operon} or {name: sparse}"


def missing() -> str | None:
    """Why the engine cannot run here, or None. Does not import pysr, which would look for Julia and download it."""
    if importlib.util.find_spec("pysr") is None:
        return f"the pysr engine needs the package pysr: {_WAY_OUT}"
    if julia() is None:
        download = f"`{sys.executable} -c 'import pysr'` downloads it once"
        return f"the pysr engine finds no Julia: {download}, or use engine: {{name: operon}}"
    return None


def julia() -> Path | None:
    """The Julia that pysr would start, where juliapkg looks for it: its own download, the search path, juliaup's default."""
    own = (
        Path(sys.prefix) / "julia_env" / "pyjuliapkg" / "install" / "bin" / "julia",
        Path.home() / ".juliaup" / "bin" / "julia",
    )
    named = (os.environ.get("PYTHON_JULIAPKG_EXE"), os.environ.get("PYTHON_JULIACALL_EXE"), shutil.which("julia"))
    found = [*(Path(name) for name in named if name), *own]
    return next((path for path in found if path.is_file()), None)


def command(folder: Path) -> list[str]:
    """The worker's command line."""
    return child_command(__name__, str(folder))


def prepare(z: np.ndarray, options: EngineOptions) -> Search:
    """A search over z (n, I), standardised."""
    names = [f"z{i}" for i in range(z.shape[1])]

    def search(y: np.ndarray, seed: int) -> tuple[list[Proposal], list[str]]:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            np.save(folder / "z.npy", z)
            np.save(folder / "y.npy", y)
            (folder / "options.json").write_text(json.dumps(_arguments(options, seed, folder)))
            result = subprocess.run(command(folder), capture_output=True, text=True, check=False)
            if result.returncode:
                last = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]
                raise ValueError(f"PySR failed ({last[:300]}); it needs Julia 1.10 or later: {_WAY_OUT}")
            front = read_hall_of_fame(folder / _OUTPUT / "hall_of_fame.csv", names)
        return [(c.tree, list(c.constants), "pysr") for c in front.candidates], list(front.notes)

    return search


def read_hall_of_fame(path: Path, names: Sequence[str]) -> Front:
    """PySR's saved front over the variables `names`; its `.bak` twin where the file itself is missing or cut off.

    Losses are PySR's own (mean squared errors, nothing held out). Rows that are not allowed are left out, with a note. Raises
    FileNotFoundError where there is neither file, ValueError where neither has a usable row.
    """
    twins = [p for p in (path, path.with_name(path.name + ".bak")) if p.is_file()]
    if not twins:
        raise FileNotFoundError(f"no hall of fame at {path}; PySR writes one per output, in its output directory")
    notes: list[str] = []
    # The twin is read only where the file itself has nothing to offer.
    for twin in twins:
        candidates: list[Candidate] = []
        with twin.open(newline="") as file:
            for row in csv.DictReader(file):
                try:
                    tree, constants = read_equation(row["Equation"], names)
                    size, loss = int(row["Complexity"]), float(row["Loss"])
                except (KeyError, TypeError, ValueError) as error:
                    # A row that is not allowed costs that row, not the front.
                    notes.append(f"{twin.name}: skipped a row: {error}")
                    continue
                candidates.append(Candidate(tree, tuple(constants), size, loss, None, "pysr"))
        if candidates:
            return Front(tuple(sorted(candidates, key=lambda c: c.complexity)), tuple(notes))
    raise ValueError(f"{path} has no usable equation: {notes[0] if notes else 'it is empty'}")


def _arguments(options: EngineOptions, seed: int, folder: Path) -> dict[str, Any]:
    """PySRRegressor's arguments, as JSON."""
    limits = {"max_evals": options.evaluations, "timeout_in_seconds": options.seconds}
    return {
        "binary_operators": [_BINARY[o] for o in options.operators if o in _BINARY],
        "unary_operators": [o for o in options.operators if o not in _BINARY],
        "complexity_of_operators": {_BINARY.get(o, o): n for o, n in options.complexities.items()},
        "maxsize": options.max_length,
        # Out of reach: evaluations or seconds end the search, unless iterations are asked for.
        "niterations": options.iterations or 1_000_000,
        **{key: value for key, value in limits.items() if value is not None and options.iterations is None},
        # Deterministic search is serial in PySR.
        "deterministic": True,
        "parallelism": "serial",
        "random_state": seed % 2**31,
        "output_directory": str(folder),
        "run_id": _OUTPUT,
        "progress": False,
        "verbosity": 0,
    }


def _work(folder: Path) -> None:
    """The worker: the only place that imports pysr."""
    pysr = importlib.import_module("pysr")  # the package, not this file
    z, y = np.load(folder / "z.npy"), np.load(folder / "y.npy")
    regressor = pysr.PySRRegressor(**json.loads((folder / "options.json").read_text()))
    regressor.fit(z, y, variable_names=[f"z{i}" for i in range(z.shape[1])])


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
