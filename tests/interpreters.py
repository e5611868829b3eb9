"""Another interpreter, in which packages that are installed here cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

BLOCKER = """\
import sys
class _Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ImportError(name + " is blocked in this test")
sys.meta_path.insert(0, _Blocked())
"""


def run_without(packages: Sequence[str], code: str, folder: Path, *arguments: str, python: str | None = None) -> str:
    """Standard output of `code` in a new interpreter in `folder`, where importing any of `packages` raises ImportError.
    `python` is another environment's.

    Raises AssertionError with what the interpreter said where it fails.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    command = [python or sys.executable, "-c", BLOCKER.format(names=tuple(packages)) + code, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
