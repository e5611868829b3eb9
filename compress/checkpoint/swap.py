"""A folder is replaced whole: the new state is built beside it, and takes its place in one step.

    .NAME.next: new files ──synced──► + links to what is the user's ──exchange──► NAME;  the old one is swept of what is ours

Where the system cannot exchange two folders (renameat2 on Linux can), or NAME cannot be renamed, a journal moves file after
file, config.json first out and last in: killed there, the folder is no checkpoint until the next run has finished the journal,
and never a mixture. Whatever is not in the manifest is the user's, and is there afterwards.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from compress.checkpoint import disk
from compress.checkpoint.beside import beside
from compress.checkpoint.files import hash_file
from compress.checkpoint.manifest import CLAIMED, FILE, Manifest

CONFIG = "config.json"  # without it a folder is no checkpoint: the journal takes it away first and brings it back last
_TAKING = "taking"  # in a manifest: the generation that a journal is moving in


@contextlib.contextmanager
def replacing(folder: Path, part: str, names: Iterable[str] = (), keep: Collection[str] = ()) -> Iterator[Path]:
    """Yields an empty folder to write into; at the end its files, and nothing else, are `part` of `folder`.

    `names` are those that will be written, as far as they are known: what is in their way is found before the body runs. Of
    `keep`, a file that the user edited stays as it is. Where the body fails, nothing happened. The caller holds `locked`.
    Raises FileExistsError naming a file that is in the way, OSError where the disk does not take it.
    """
    folder = folder.expanduser().resolve()
    recover(folder)
    manifest = Manifest(folder, part)
    manifest.check(names, keep)
    stage = _stage(folder)
    try:
        disk.make(stage)
        new = Manifest(stage, part)
        files = {**manifest.content["files"], part: {}}
        new.content = {"format": 1, "generation": manifest.generation + 1, "files": files}
        new.write()
        yield stage
        _commit(folder, stage, manifest, new, keep)
    except BaseException:
        # Killed instead, the next run finds it and does the same.
        recover(folder)
        raise


def recover(folder: Path) -> None:
    """Finish, or undo, what a process that was killed left half done in or beside a folder; the caller holds `locked`."""
    folder = folder.expanduser().resolve()
    stage, manifest = _stage(folder), Manifest(folder, "")
    manifest.sweep(manifest.known)
    if not os.path.lexists(stage):
        return
    left = Manifest(stage, "")
    if not (stage / FILE).is_file():
        if any(not _is_part(path) for path in stage.iterdir()):
            raise FileExistsError(f"{stage} is in the way and compress did not write it; move it away")
        disk.remove_tree(stage)  # ended at its first write
    elif manifest.content.get(_TAKING) == left.generation:
        _journal(folder, stage)
    elif left.generation < manifest.generation:
        _sweep(folder, stage, left)
    else:
        disk.remove_tree(stage, last=FILE)  # never finished: of it, only links are the user's


def interrupted(folder: Path) -> bool:
    """Whether a journal was begun and not finished: the folder is no checkpoint until `recover` has."""
    taking = Manifest(folder, "").content.get(_TAKING)
    return taking is not None and Manifest(_stage(folder), "").generation == taking


def _is_part(path: Path) -> bool:
    return path.name.startswith(f".{FILE}.") and path.suffix == ".part"


def _stage(folder: Path) -> Path:
    return beside(folder, ".", ".next")


def _commit(folder: Path, stage: Path, old: Manifest, new: Manifest, keep: Collection[str]) -> None:
    written = sorted(_files(stage))
    # Once more: the body may have taken an hour, and may have written files whose names nobody knew.
    edited = old.check(written, keep)
    for name in edited:
        warnings.warn(f"{folder / name} was edited since compress wrote it, and is kept", stacklevel=4)
        disk.remove(stage / name)
    fresh = [name for name in written if name not in edited]
    for name in fresh:
        disk.sync(stage / name)
    new.own.update({name: old.known[name] if name in edited else hash_file(stage / name) for name in written})
    new.write()
    for inner in sorted({(stage / name).parent for name in fresh}):
        disk.sync(inner)
    if not folder.exists():
        disk.move(stage, folder)
    elif _can_be_renamed(folder, stage) and _carried(folder, stage, set(old.own) - set(edited)):
        if not (folder / FILE).is_file():
            old.write()  # what was adopted, or that nothing is ours: the sweep reads it
        if disk.exchange(stage, folder):
            _sweep(folder, stage, Manifest(stage, ""))
        else:
            _journal(folder, stage)
    else:
        _journal(folder, stage)


def _files(folder: Path) -> Iterator[str]:
    """Relative names of all files below a folder, without its manifest; links are files."""
    for inner, folders, files in os.walk(folder):
        at = Path(inner).relative_to(folder)
        links = [name for name in folders if (Path(inner) / name).is_symlink()]
        for name in (*files, *links):
            if (found := (at / name).as_posix()) != FILE:
                yield found


def _can_be_renamed(folder: Path, stage: Path) -> bool:
    # Who works in a folder would be left in the old one.
    return stage.parent == folder.parent and folder not in (here := Path.cwd(), *here.parents)


def _carried(folder: Path, stage: Path, replaced: Collection[str]) -> bool:
    """Whether all that is not replaced has a second name in the new folder; empty folders come along."""
    try:
        for inner, folders, _ in os.walk(folder):
            at = Path(inner).relative_to(folder)
            for name in folders:
                if not (Path(inner) / name).is_symlink():
                    disk.make(stage / at / name)
        for name in sorted(_files(folder)):
            if name not in replaced and not (stage / name).exists():
                disk.link(folder / name, stage / name)
    except OSError:
        return False  # no links here, or another file system inside: the journal leaves what is the user's where it is
    return True


def _sweep(folder: Path, old: Path, manifest: Manifest) -> None:
    """Remove the old folder: ours goes, a link's file has its other name, and what the user put there since moves over."""
    for name in sorted(_files(old)):
        path, now = old / name, folder / name
        if os.path.lexists(now) and os.path.samestat(path.lstat(), now.lstat()):
            continue
        if _is_part(path):
            continue
        digest = manifest.known.get(name)
        if digest is not None and (digest == CLAIMED or not path.is_file() or hash_file(path) == digest):
            continue
        while os.path.lexists(now):  # both were written to: both stay
            now = now.with_name(now.name + "~")
        disk.make(now.parent)
        disk.move(path, now)
    disk.remove_tree(old, last=FILE)


def _journal(folder: Path, stage: Path) -> None:
    """Move the new files in, one after the other; begun, it is finished by the next run."""
    new, manifest = Manifest(stage, ""), Manifest(folder, "")
    files: dict[str, dict[str, str]] = new.content["files"]
    if manifest.content.get(_TAKING) != new.generation:
        # All names of both, so that nothing of ours is taken for the user's on the way.
        for part, names in files.items():
            manifest.content["files"].setdefault(part, {}).update(dict.fromkeys(names, CLAIMED))
        manifest.content[_TAKING] = new.generation
        manifest.write()
    if (stage / CONFIG).is_file():  # not moved yet: what is there is the old one
        disk.remove(folder / CONFIG)
    for name in sorted(set(manifest.known) - set(new.known)):
        if manifest.holds(name):  # edited, it is the user's
            disk.remove_tree(folder / name)
    for name in sorted((name for name in new.known if (stage / name).exists()), key=lambda name: (name == CONFIG, name)):
        disk.make((folder / name).parent)
        disk.move(stage / name, folder / name)
    for path in sorted(stage.iterdir()):
        if path.name != FILE:
            disk.remove_tree(path)
    disk.move(stage / FILE, folder / FILE)
    disk.remove(stage)
