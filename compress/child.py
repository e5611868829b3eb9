"""A module of ours in a process of its own, which imports nothing from the working folder."""

from __future__ import annotations

import sys
from pathlib import Path

# -P leaves the working folder out. Our own place comes last: behind the standard library, which no file of ours may hide.
_RUN = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this package; `module` sees its arguments in sys.argv as ever."""
    return [sys.executable, "-P", "-c", _RUN, str(Path(__file__).parents[1]), module, *arguments]
