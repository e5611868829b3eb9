"""The PySR engine without Julia: what it asks of its worker process, how it fails, how its equations are scored."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from compress.regression.engines import pysr
from compress.regression.front import Candidate, Front, choose
from compress.regression.options import EngineOptions
from compress.regression.regress import regress

Z = np.random.default_rng(0).normal(size=(600, 3))
TARGET = 0.7 * Z[:, 0] * Z[:, 1] - 1.3 * Z[:, 2] + 0.2


def best(front: Front) -> Candidate:
    return front.candidates[choose(front)]


PYSR = EngineOptions(name="pysr", operators=("add", "mul", "sin", "inv"), iterations=3, complexities={"sin": 3})
WORKER = """
import json, pathlib, sys, numpy
folder = pathlib.Path(sys.argv[1])
options, z = json.loads((folder / "options.json").read_text()), numpy.load(folder / "z.npy")
assert options["niterations"] == 3 and options["deterministic"] and "max_evals" not in options, options
assert options["binary_operators"] == ["+", "*"] and options["unary_operators"] == ["sin", "inv"], options
assert options["complexity_of_operators"] == {"sin": 3} and z.shape[1] == 3
(folder / options["run_id"]).mkdir()
(folder / options["run_id"] / "hall_of_fame.csv").write_text(
    "Complexity,Loss,Equation\\n1,1.0,0.2\\n9,0.0,((z0 * z1) * 0.7) + (z2 * -1.3) + 0.2\\n"
)
"""


def run_worker(monkeypatch: Any, code: str) -> None:
    monkeypatch.setattr(pysr, "missing", lambda: None)
    monkeypatch.setattr(pysr, "command", lambda folder: [sys.executable, "-c", code, str(folder)])


def test_pysr_runs_in_a_process_of_its_own_and_its_equations_are_scored_like_any(monkeypatch):
    run_worker(monkeypatch, WORKER)
    found = best(regress(Z, TARGET, PYSR))
    assert found.source == "pysr"
    assert found.held_out_loss < 1e-20


def test_a_failing_pysr_is_one_line_with_the_way_out(monkeypatch):
    run_worker(monkeypatch, "raise OSError('could not find Julia 1.10.3 - 1.11')")
    with pytest.raises(ValueError, match=r"PySR failed \(OSError: could not find Julia .*\); it needs Julia.*name: operon"):
        regress(Z, TARGET, PYSR)


def test_without_pysr_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package pysr: pip install 'compress\[pysr\]'"):
        regress(Z, TARGET, PYSR)
    assert "pysr" not in sys.modules
