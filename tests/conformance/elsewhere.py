"""Other interpreters that load checkpoints: started once, asked many times, each with its own idea of what is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interpreters import BLOCKER
from recipes_for_tests import IDS

from compress.version import __file__ as version_file

ROOT = Path(version_file).parents[1]

# A line in, a line out: {"folder": …} → {"kind": name of the model's class, "sha256": of its logits} or {"error": …}.
_LOOP = """
import hashlib, json, sys, warnings
import torch
warnings.simplefilter("ignore")
ids = torch.tensor(json.loads(sys.argv[1]))
{prepare}
for line in sys.stdin:
    folder = json.loads(line)
    try:
        with torch.no_grad():
            {load}
            {run}
        answer = {{"class": type(model).__name__, "sha256": hashlib.sha256(y.contiguous().numpy().tobytes()).hexdigest()}}
    except Exception as error:
        answer = {{"error": f"{{type(error).__name__}}: {{error}}"}}
    print("ANSWER " + json.dumps(answer), flush=True)
"""
_TRANSFORMERS = "from transformers import AutoModelForCausalLM"
_LOAD = "model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32{}).eval()"
_LOGITS = "y = model(ids).logits"
_STANDALONE = (
    "import importlib.util\n"
    "def standalone(folder):\n"
    "    spec = importlib.util.spec_from_file_location('standalone_model', folder + '/model.py')\n"
    "    module = importlib.util.module_from_spec(spec)\n"
    "    spec.loader.exec_module(module)\n"
    "    return module.load(__import__('pathlib').Path(folder))"
)
# The prompt, then the rest on its cache: what is compared is a whole and a continued pass.
_CONTINUED = (
    "whole, (first, cache) = model(ids)[0], model(ids[:, :20]); rest = model(ids[:, 20:], cache)[0]; "
    "y = torch.stack([whole, torch.cat([first, rest], dim=1)]); torch.save(y, folder + '/logits.pt')"
)


def _program(prepare: str, load: str, run: str = _LOGITS, blocked: tuple[str, ...] = ()) -> str:
    block = BLOCKER.format(names=blocked) if blocked else ""
    return block + _LOOP.format(prepare=prepare, load=load, run=run)


PROGRAMS = {
    # compress is installed; no line of the program names it
    "stock": _program(_TRANSFORMERS, _LOAD.format("")),
    # compress cannot be imported, and no checkpoint's own code is trusted
    "plain": _program(_TRANSFORMERS, _LOAD.format(""), blocked=("compress",)),
    "trusting": _program(_TRANSFORMERS, _LOAD.format(", trust_remote_code=True"), blocked=("compress",)),
    # torch alone
    "standalone": _program(
        _STANDALONE, "model = standalone(folder)", _CONTINUED, blocked=("compress", "transformers", "safetensors")
    ),
}


@dataclass
class Elsewhere:
    """The interpreters by name of `PROGRAMS`, with a folder for their caches. Close it."""

    folder: Path
    _running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def load(self, program: str, folder: Path) -> dict[str, Any]:
        """What the interpreter answers for one checkpoint. Raises RuntimeError where it died."""
        if program not in self._running:
            self._running[program] = self._start(program)
        process = self._running[program]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(str(folder)) + "\n")
        process.stdin.flush()
        for line in process.stdout:  # libraries print, too
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        self._running.pop(program)
        raise RuntimeError(f"the interpreter {program!r} died with exit code {process.wait()} on {folder.name}")

    def _start(self, program: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            # What this process finds, packages with methods and kinds among it, is found there too.
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(self.folder / f"{program}-modules"),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if program != "stock":  # the hook must not be what fails there
            environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
        command = [sys.executable, "-c", PROGRAMS[program], json.dumps(IDS.tolist())]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, cwd=self.folder, env=environment, text=True, **pipes)

    def close(self) -> None:
        for process in self._running.values():
            process.kill()  # nothing of theirs is unfinished, and ending by themselves takes seconds
            process.communicate()
        self._running.clear()
