"""Names are claimed before files are written; what is not ours is never replaced, removed or taken for ours."""

import json
import os
import subprocess
import sys

import pytest

from compress.checkpoint import disk
from compress.checkpoint.beside import beside
from compress.checkpoint.files import hash_file, sweep_parts, write_json, write_text
from compress.checkpoint.lock import locked
from compress.checkpoint.manifest import CLAIMED, FILE, Manifest
from compress.checkpoint.swap import recover
from compress.checkpoint.work import open_work, work_of


def test_a_file_is_claimed_then_written_then_known_by_its_digest(tmp_path):
    ours = Manifest(tmp_path, "report")
    with ours.files("plots/a.png") as (path,):
        assert json.loads((tmp_path / FILE).read_text())["files"] == {"report": {"plots/a.png": CLAIMED}}
        write_text(path, "picture")
    assert Manifest(tmp_path, "report").own == {"plots/a.png": hash_file(path)}
    write_text(path, "edited")
    with pytest.raises(FileExistsError, match="was changed since compress wrote it"), ours.files("plots/a.png"):
        pass


def test_what_was_not_written_is_not_ours(tmp_path):
    with Manifest(tmp_path, "sweep").files("sweep.png"):
        pass
    assert Manifest(tmp_path, "sweep").own == {}


def test_a_checkpoint_without_a_manifest_is_adopted_through_its_report(tmp_path):
    for name in ("model.safetensors", "config.json", "notes.json", "README.md"):
        write_text(tmp_path / name, name)
    write_json(tmp_path / "report.json", {"files": {"model.safetensors": hash_file(tmp_path / "model.safetensors")}})
    ours = Manifest(tmp_path, "checkpoint")
    assert set(ours.own) == {"model.safetensors", "config.json", "report.json", "README.md"}
    assert not (tmp_path / FILE).exists()  # looking is not writing
    # A card that compress did not generate counts as edited.
    assert ours.check(["model.safetensors", "README.md"], keep=["README.md"]) == ["README.md"]
    write_text(tmp_path / "model.safetensors", "trained on")
    assert Manifest(tmp_path, "checkpoint").own == {}


def test_another_run_on_one_folder_is_told_the_process(tmp_path):
    code = "import sys; from pathlib import Path; from compress.checkpoint.lock import locked\n"
    code += "with locked(Path(sys.argv[1])): pass"
    with locked(tmp_path / "out"):
        command = [sys.executable, "-c", code, str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"another run (process {os.getpid()}) is writing to {tmp_path / 'out'}; wait for it" in done.stderr
    with locked(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_parts_of_dead_processes_go_and_of_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".a.{dead.pid}.part", f".a.{os.getppid()}.part", ".a.part", f".b.{dead.pid}.part"):
        (tmp_path / name).touch()
    sweep_parts(tmp_path, ["a"])
    assert {path.name for path in tmp_path.iterdir()} == {f".a.{os.getppid()}.part", ".a.part", f".b.{dead.pid}.part"}


def test_work_stands_beside_the_output_and_moves_out_of_an_older_one(tmp_path):
    output = tmp_path / "out"
    work = beside(output, "", ".work")
    write_text(output / "work" / "units" / "a.0123456789ab.safetensors", "unit")
    assert work_of(output) == output / "work"
    open_work(output, work)
    assert work_of(output) == work == tmp_path / "out.work"
    assert (work / "units" / "a.0123456789ab.safetensors").read_text() == "unit"
    write_text(work / "notes.txt", "mine")
    open_work(output, work, fresh=True)
    assert {path.name for path in work.iterdir()} == {FILE, "notes.txt"}


def test_a_folder_of_the_users_by_the_name_of_work_is_refused(tmp_path):
    write_text(tmp_path / "out.work" / "units" / "mine.txt", "mine")
    with pytest.raises(FileExistsError, match=r"out\.work/units is in the way and compress did not write it"):
        open_work(tmp_path / "out", tmp_path / "out.work", fresh=True)


def test_where_nothing_can_stand_beside_a_folder_it_stands_inside(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    assert beside(tmp_path, ".", ".next") == tmp_path / ".compress.next"


def test_a_folder_is_never_removed_through_a_link(tmp_path):
    write_text(tmp_path / "theirs" / "a.txt", "mine")
    (tmp_path / "ours").symlink_to(tmp_path / "theirs")
    disk.remove_tree(tmp_path / "ours")
    assert (tmp_path / "theirs" / "a.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["../victim", "/etc/victim", "a/../../victim", "", ".", "link/victim"])
def test_a_manifest_that_came_with_a_folder_reaches_nothing_outside_it(tmp_path, name):
    """With a journal to finish: as an archive with a stage beside the folder would have it."""
    folder, stage = tmp_path / "out", tmp_path / ".out.next"
    for made in (folder, stage, tmp_path / "victim"):
        made.mkdir()
    (folder / "link").symlink_to(tmp_path)
    write_json(folder / FILE, {"generation": 0, "taking": 1, "files": {"x": {name: CLAIMED}}})
    write_json(stage / FILE, {"generation": 1, "files": {}})
    with pytest.raises(ValueError, match="which is not in the folder; move that file away"):
        recover(folder)
    assert (tmp_path / "victim").is_dir()


@pytest.mark.parametrize("content", [{"files": {"x": {"a": 1}}}, {"files": [], "format": 1}, {"files": {}, "taking": "all"}])
def test_a_manifest_of_another_kind_is_refused(tmp_path, content):
    write_json(tmp_path / FILE, content)
    with pytest.raises(ValueError, match="was not written by compress; move it away"):
        Manifest(tmp_path, "checkpoint")


def test_a_report_that_came_with_a_folder_adopts_nothing_outside_it(tmp_path):
    write_text(tmp_path / "victim.txt", "mine")
    folder = tmp_path / "out"
    write_json(folder / "report.json", {"files": {"../victim.txt": hash_file(tmp_path / "victim.txt")}})
    assert Manifest(folder, "checkpoint").own == {}
