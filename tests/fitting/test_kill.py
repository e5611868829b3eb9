"""kill −9 in the middle of a fit, in a real process: the run after it ends with the bytes of an undisturbed one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from recipes_for_tests import tiny_folder, tiny_recipe

DYING = """
import os, signal, sys

from compress.fitting import calibrate, finetune, run
from compress import recipe
owners = {"unit": [calibrate, finetune], "search": [calibrate.SearchLog]}[sys.argv[2]]
name = {"unit": "write_unit", "search": "write"}[sys.argv[2]]
write, left = getattr(owners[0], name), [int(sys.argv[3])]
def dying(*args):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    write(*args)
for owner in owners:
    setattr(owner, name, dying)
run.fit(recipe.load_recipe(sys.argv[1]))
print(99 - left[0])
"""


def start(recipe: Path, what: str, writes: int) -> subprocess.CompletedProcess[str]:
    """Run a recipe in a process that dies before it writes one more unit or finished search."""
    command = [sys.executable, "-c", DYING, str(recipe), what, str(writes)]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, capture_output=True, text=True)


def same(a: Path, b: Path) -> bool:
    return all((a / file).read_bytes() == (b / file).read_bytes() for file in ("model.safetensors", "config.json"))


def test_kill_nine_loses_nothing(tmp_path):
    source = tiny_folder(tmp_path / "source", "llama")
    step = {"method": "feature_space", "targets": {"roles": ["v", "up"]}, "rank": {"keep": 0.5}}
    tune = {"steps": 20, "lr": 0.01, "batch": 2}
    for name in ("killed", "whole"):
        (tmp_path / f"{name}.yaml").write_text(tiny_recipe(source, tmp_path / name, step, finetune=tune).to_yaml())
    for writes in (1, 2, 4):  # the last within the fine-tuning
        assert start(tmp_path / "killed.yaml", "unit", writes).returncode == -signal.SIGKILL
    assert start(tmp_path / "killed.yaml", "unit", 99).returncode == 0
    assert start(tmp_path / "whole.yaml", "unit", 99).returncode == 0
    assert same(tmp_path / "killed", tmp_path / "whole")


def test_no_finished_search_is_lost(tmp_path):
    source = tiny_folder(tmp_path / "source", "llama")
    engine = {"evaluations": 500, "population": 50, "terms": 2}
    step = {"method": "symbolic_mlp", "targets": {"layers": [1]}, "latents": {"inputs": 3, "outputs": 4}, "samples": 100}
    for name in ("killed", "whole"):
        (tmp_path / f"{name}.yaml").write_text(tiny_recipe(source, tmp_path / name, {**step, "engine": engine}).to_yaml())
    assert start(tmp_path / "killed.yaml", "search", 3).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "killed" / "work" / "searches").rglob("*.json"))) == 3
    assert start(tmp_path / "killed.yaml", "search", 99).stdout.split() == ["1"]  # search, of four
    assert start(tmp_path / "whole.yaml", "search", 99).stdout.split() == ["4"]
    assert same(tmp_path / "killed", tmp_path / "whole")
    assert not list((tmp_path / "killed" / "work" / "searches").iterdir())
