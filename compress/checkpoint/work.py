"""The folder of unfinished work, NAME.work beside the output NAME: what the next run need not do again."""

from __future__ import annotations

from pathlib import Path

from compress.checkpoint import disk
from compress.checkpoint.beside import beside
from compress.checkpoint.files import sweep_parts
from compress.checkpoint.manifest import CLAIMED, FILE, Manifest

# Folders and files that runs keep there; each folder is ours with all that is in it.
NAMES = (
    *("units", "searches", "gradient_moments", "boundaries", "refined", "replaced", "finetuned"),
    *("search", "layers", "speed.json", "baseline.json", "losses.json", "processes.json"),
)


def work_of(output: Path) -> Path:
    """Where the work of an output is."""
    work, inside = beside(output, "", ".work"), output / "work"
    # Once it was inside; it moves out when the next run begins.
    return inside if not work.is_dir() and _is_work(inside) else work


def open_work(output: Path, work: Path, fresh: bool = False) -> None:
    """Make the work folder ready for a run on `output`: emptied of ours where `fresh`, and of what dead processes left.

    Raises FileExistsError naming a file of the user's that is in the way.
    """
    inside = output / "work"
    if not work.exists() and work == beside(output, "", ".work") and _is_work(inside):
        disk.move(inside, work)
    manifest = Manifest(work, "work")
    if not (work / FILE).is_file() and _is_work(work):
        manifest.own.update(dict.fromkeys(NAMES, CLAIMED))
    if fresh:
        manifest.remove(*manifest.own)
    manifest.claim(*NAMES)
    for name in NAMES:
        sweep_parts(work / name)


def _is_work(folder: Path) -> bool:
    """Whether a folder is work of a version that wrote no manifests: it has unit files, and nothing but."""
    units = list((folder / "units").iterdir()) if (folder / "units").is_dir() else []
    known = all(entry.name in NAMES for entry in folder.iterdir()) if units else False
    return known and all(unit.suffix in (".safetensors", ".json", ".part") for unit in units)
