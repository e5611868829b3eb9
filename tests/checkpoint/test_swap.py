"""A folder is replaced whole, whatever happens: what is the user's is there afterwards, and a process may end anywhere."""

import errno
import itertools
import os

import pytest

from compress.checkpoint import disk, swap
from compress.checkpoint.files import write_text
from compress.checkpoint.manifest import FILE, Manifest
from compress.checkpoint.swap import interrupted, recover, replacing


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours may run after it."""


def state(folder):
    """{relative name: text} of a folder, without the manifest."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files if path.name != FILE}


def put(folder, **files):
    """Replace the folder's part by these files; `_` in a name stands for a dot."""
    with replacing(folder, "checkpoint") as stage:
        for name, text in files.items():
            write_text(stage / name.replace("_", "."), text)


OLD = {"config_json": "old", "weights_bin": "old", "index_json": "old"}
NEW = {"config_json": "new", "weights_bin": "new", "more_bin": "new"}
MINE = {"notes.txt": "mine", "sub/deep.txt": "mine"}
EXCHANGE, JOURNAL = "exchange", "journal"


@pytest.fixture(params=[EXCHANGE, JOURNAL])
def way(request, monkeypatch):
    """With and without a system that can exchange two folders."""
    if request.param == JOURNAL:
        monkeypatch.setattr(disk, "_renameat2", lambda: None)
    elif disk._renameat2() is None:
        pytest.skip("no renameat2 here")
    return request.param


@pytest.fixture
def folder(tmp_path):
    """A folder of ours with files of the user's in it."""
    put(tmp_path / "out", **OLD)
    for name, text in MINE.items():
        write_text(tmp_path / "out" / name, text)
    (tmp_path / "out" / "link").symlink_to("notes.txt")
    return tmp_path / "out"


def named(files):
    return {name.replace("_", "."): text for name, text in files.items()}


def test_what_is_ours_is_replaced_and_the_rest_stays(folder, way):
    put(folder, **NEW)
    assert state(folder) == {**named(NEW), **MINE, "link": "mine"}
    assert (folder / "link").is_symlink()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["out"]
    assert set(Manifest(folder, "checkpoint").own) == set(named(NEW))


def test_killed_anywhere_it_is_the_old_state_or_the_new_one(tmp_path, way):
    """Every operation, before, in and after; by the journal it may be neither in between, but then it is no checkpoint."""
    total, at, seen = None, 0, set()
    while total is None or at < total:
        out = tmp_path / str(at) / "out"
        put(out, **OLD)
        for name, text in MINE.items():
            write_text(out / name, text)
        count = iter(range(10**6))

        def watch(moment, operation, path, count=count, at=at):
            if next(count) == at:
                if moment == "amid":
                    os.truncate(path, path.stat().st_size // 2)
                raise Killed

        try:
            # In a killed process nothing cleans up.
            with pytest.MonkeyPatch.context() as patch, disk.watched(watch):
                patch.setattr(swap, "recover", lambda folder: None)
                put(out, **NEW)
            total = next(count)
        except Killed:
            now = {name: text for name, text in state(out).items() if ".part" not in name}
            assert {name: now.get(name) for name in MINE} == MINE
            if "config.json" in now:
                assert now in ({**named(OLD), **MINE}, {**named(NEW), **MINE})
            else:
                assert way == JOURNAL
                assert interrupted(out)
            seen.add(now.get("config.json"))
        recover(out)
        assert state(out) in ({**named(OLD), **MINE}, {**named(NEW), **MINE})
        put(out, **NEW)
        assert state(out) == {**named(NEW), **MINE}
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        at += 1
    assert seen == {"old", "new"} if way == EXCHANGE else {"old", "new", None}


def test_what_a_process_that_ended_at_its_first_write_left_is_nobodys(folder):
    stage = folder.parent / ".out.next"
    write_text(stage / f".{FILE}.123.part", "half")
    before = state(folder)
    recover(folder)
    assert state(folder) == before
    assert not stage.exists()


def test_what_the_user_writes_during_the_exchange_is_not_lost(folder, monkeypatch):
    real = disk.exchange

    def meanwhile(stage, target):
        write_text(target / "late.txt", "late")
        write_text(target / "notes.txt", "newer")  # another file under the name that was linked
        write_text(target / "weights.bin", "touched")
        return real(stage, target)

    monkeypatch.setattr(disk, "exchange", meanwhile)
    put(folder, **NEW)
    changed = {"late.txt": "late", "notes.txt~": "newer", "weights.bin~": "touched", "link": "mine"}
    assert state(folder) == {**named(NEW), **MINE, **changed}


@pytest.mark.parametrize(("name", "what"), [("more.bin", "compress did not write it"), ("weights.bin", "was changed since")])
def test_what_is_in_the_way_is_named_and_nothing_happens(folder, name, what):
    write_text(folder / name, "the user's")
    before = state(folder)
    with pytest.raises(FileExistsError, match=rf"{name} .*{what}.*; move it away, or give another output"):
        put(folder, **NEW)
    assert state(folder) == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["out"]


def test_an_edited_file_that_may_be_edited_is_kept_and_said_so(folder):
    write_text(folder / "index.json", "edited")
    for _ in range(2):  # the second time, too: it is what we wrote that is remembered
        with pytest.warns(UserWarning, match=r"index\.json was edited since compress wrote it, and is kept"):  # noqa: SIM117
            with replacing(folder, "checkpoint", ["index.json"], keep=["index.json"]) as stage:
                write_text(stage / "index.json", "ours")
        assert state(folder)["index.json"] == "edited"


def test_an_edited_file_that_the_new_state_lacks_is_the_users(folder, way):
    write_text(folder / "weights.bin", "edited")
    put(folder, config_json="new", index_json="new")
    assert state(folder)["weights.bin"] == "edited"
    put(folder, config_json="newer", index_json="newer")
    assert state(folder)["weights.bin"] == "edited"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_does_not_take_it_costs_nothing(folder, number):
    before, errors = state(folder), []
    for at in itertools.count():
        count = itertools.count()

        def full(moment, operation, path, count=count, at=at):
            if operation in ("write", "make", "link") and next(count) == at:
                raise OSError(number, os.strerror(number), str(path))

        try:
            with disk.watched(full):
                put(folder, **OLD)
            break  # that many operations were not needed
        except OSError as error:
            errors.append(error.errno)
        assert state(folder) == before
        assert sorted(path.name for path in folder.parent.iterdir()) == ["out"]
    assert set(errors) == {number}
    assert len(errors) > 9


def test_a_folder_that_somebody_works_in_stays_the_same_folder(folder, monkeypatch):
    monkeypatch.chdir(folder / "sub")
    inode = folder.stat().st_ino
    put(folder, **NEW)
    assert folder.stat().st_ino == inode
    assert state(folder) == {**named(NEW), **MINE, "link": "mine"}


def test_parts_of_other_commands_stay(folder, way):
    with Manifest(folder, "search").files("ranks.json") as (path,):
        write_text(path, "found")
    put(folder, **NEW)
    assert state(folder)["ranks.json"] == "found"
    assert Manifest(folder, "search").own.keys() == {"ranks.json"}


def test_something_else_by_the_name_of_the_next_state_is_refused(folder):
    write_text(folder.parent / ".out.next" / "mine.txt", "mine")
    with pytest.raises(FileExistsError, match=r"\.out\.next is in the way and compress did not write it"):
        put(folder, **NEW)
    assert state(folder.parent / ".out.next") == {"mine.txt": "mine"}
