"""kill −9 in the middle of a fit, three times, in a real process: the fourth run ends with the bytes of an undisturbed one."""

import os
import signal
import subprocess
import sys

from recipes_for_tests import tiny_folder, tiny_recipe

DYING = """
import os, signal, sys
from compress import checkpoint, recipe, run
write, left = checkpoint.write_unit, [int(sys.argv[2])]
def dying(*args):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    write(*args)
checkpoint.write_unit = dying
run.fit(recipe.load_recipe(sys.argv[1]))
"""


def test_kill_nine_loses_nothing(tmp_path):
    source = tiny_folder(tmp_path / "source", "llama")
    step = {"method": "feature_space", "targets": {"roles": ["v", "up"]}, "rank": {"keep": 0.5}}
    tune = {"steps": 20, "lr": 0.01, "batch": 2}
    for name in ("killed", "whole"):
        (tmp_path / f"{name}.yaml").write_text(tiny_recipe(source, tmp_path / name, step, finetune=tune).to_yaml())

    def start(name: str, units: int) -> int:
        command = [sys.executable, "-c", DYING, str(tmp_path / f"{name}.yaml"), str(units)]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode

    assert start("killed", 1) == -signal.SIGKILL
    assert start("killed", 2) == -signal.SIGKILL
    assert start("killed", 4) == -signal.SIGKILL  # within the fine-tuning
    assert start("killed", 99) == 0
    assert start("whole", 99) == 0
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
