"""Several processes on one fit: the same bytes for any number of them, also after one has died; and what goes wrong is told."""

import hashlib
import os
import signal
import time

import pytest
from long import LONG
from parallel.processes import ended, start
from recipes_for_tests import symbolic_step, tiny_recipe

from compress.cli import main
from compress.fitting import alike, run

LOW_RANK = {"method": "whitened_svd", "importance": "fisher", "form": "pivoted", "rank": {"budget": 0.6}}
TARGETS = {"targets": {"roles": ["q", "k", "v", "o"]}}
LEVERS = {"propagate_error": True, "refine": {"steps": 3, "batch": 5}, "finetune": {"steps": 3, "batch": 5, "lr": 0.003}}


def everything(folder, output):
    """A recipe with every lever."""
    return tiny_recipe(folder, output, {**LOW_RANK, **TARGETS}, symbolic_step(2, 2), **LEVERS, compute={"lanes": 8})


def digests(output):
    names = ("model.safetensors", "config.json")
    return {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture(scope="module")
def alone(folders, tmp_path_factory):
    """What one process writes."""
    folders("llama")  # made here: in a child it would be that child's
    output = tmp_path_factory.mktemp("alone") / "out"
    (code,) = ended(start(1, lambda _: run.fit(everything(folders("llama"), output)), output.parent / "logs"))
    assert code == 0
    return digests(output)


@pytest.mark.parametrize("size", [2, 3, 4, 8] if LONG else [3])
def test_any_number_of_processes_writes_the_same_bytes(folders, alone, tmp_path, size):
    output = tmp_path / "out"
    codes = ended(start(size, lambda _: run.fit(everything(folders("llama"), output)), tmp_path / "logs"))
    assert codes == [0] * size, (tmp_path / "logs" / "0").read_text()
    assert digests(output) == alone


def test_a_process_dies_and_another_number_of_them_goes_on(folders, alone, tmp_path):
    output = tmp_path / "out"
    pids = start(2, lambda _: run.fit(everything(folders("llama"), output)), tmp_path / "logs")
    until = time.monotonic() + 60
    while not list((tmp_path / "out.work").glob("units/*.safetensors")) and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(pids[1], signal.SIGKILL)
    codes = ended(pids, 60)
    # The other one ends by itself.
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, -signal.SIGKILL)
    assert "rank 1" in (tmp_path / "logs" / "0").read_text()
    units = {file: file.stat().st_mtime_ns for file in (tmp_path / "out.work" / "units").glob("*.safetensors")}
    assert ended(start(3, lambda _: run.fit(everything(folders("llama"), output)), tmp_path / "logs")) == [0] * 3
    assert digests(output) == alone
    assert all(file.stat().st_mtime_ns == made for file, made in units.items())


def said(folder):
    """What was told, over all processes."""
    return [line for log in sorted(folder.iterdir()) for line in log.read_text().splitlines() if "error:" in line]


def test_processes_that_differ_are_told_so_once(folders, tmp_path, monkeypatch):
    recipe = everything(folders("llama"), tmp_path / "out")

    def fit(rank):
        (tmp_path / f"{rank}.yaml").write_text(recipe.model_copy(update={"seed": rank}).to_yaml())
        monkeypatch.setattr("sys.argv", ["compress", "fit", str(tmp_path / f"{rank}.yaml")])
        main.main()

    assert ended(start(2, fit, tmp_path / "logs")) == [2, 2]
    (line,) = said(tmp_path / "logs")
    assert "rank 1 has otherwise than rank 0: the recipe" in line
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_shared_is_told(folders, tmp_path, monkeypatch):
    recipe = everything(folders("llama"), tmp_path / "out")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())

    def fit(rank):
        monkeypatch.setattr(alike, "PATIENCE", 0.2)
        if rank == 1:
            monkeypatch.setattr(alike, "read_json", lambda _: None)
        monkeypatch.setattr("sys.argv", ["compress", "fit", str(tmp_path / "recipe.yaml")])
        main.main()

    assert ended(start(2, fit, tmp_path / "logs")) == [2, 2]
    (line,) = said(tmp_path / "logs")
    assert "rank 1 does not see" in line


def test_commands_for_one_process_say_so(compress, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, told = compress("bench", tmp_path)
    assert code == 2
    assert "bench runs in one process" in told
