"""What of a folder is ours: `.compress.json` has the name of every file that we wrote there, and its sha256.

A name is claimed before its file is written, and the digest follows it: a process may end anywhere, and no file of ours is
ever taken for the user's, nor one of the user's for ours. Files of several commands may lie in one folder; each is a part.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from compress.checkpoint import disk
from compress.checkpoint.files import hash_file, read_json, sweep_parts, write_json

FILE = ".compress.json"
CLAIMED = "claimed"  # in a digest's place: the file is being written, or grows

# Of checkpoints that have no manifest yet: what stands beside the weights, which report.json knows by their digests.
_BESIDE = (
    *("config.json", "recipe.yaml", "report.json", "modeling_compress.py", "model.safetensors.index.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model"),
    *("chat_template.jinja", "generation_config.json"),
)


class _Content(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    generation: NonNegativeInt = 0
    taking: NonNegativeInt | None = None  # the generation that a journal is moving in
    files: dict[str, dict[str, str]]


class Manifest:
    """The manifest of a folder, and of it the files of one part. Nothing is written where the folder is only looked at.

    Raises ValueError for a manifest that is none of ours, or names what is not in the folder: it may have come with it.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self.folder, self.part = folder, part
        read = read_json(folder / FILE) or {"files": _adopted(folder)}
        try:
            self.content: dict[str, Any] = _Content.model_validate(read).model_dump(exclude_none=True)
        except ValidationError:
            raise ValueError(f"{folder / FILE} was not written by compress; move it away") from None
        for name in self.known:
            if not _inside(folder, name):
                raise ValueError(f"{folder / FILE} names {name[:200]!r}, which is not in the folder; move that file away")

    @property
    def generation(self) -> int:
        """How often the folder was replaced whole."""
        return int(self.content.get("generation", 0))

    @property
    def own(self) -> dict[str, str]:
        """{relative name: sha256 or CLAIMED} of this part."""
        found: dict[str, str] = self.content["files"].setdefault(self.part, {})
        return found

    @property
    def known(self) -> dict[str, str]:
        """The same of all parts."""
        parts: Mapping[str, Mapping[str, str]] = self.content["files"]
        return {name: digest for part in parts.values() for name, digest in part.items()}

    def write(self) -> None:
        """Put the manifest on disk."""
        self.content["files"] = {part: files for part, files in self.content["files"].items() if files}
        write_json(self.folder / FILE, self.content, sort_keys=True)

    def holds(self, name: str) -> bool:
        """Whether a file is as we wrote it; a folder that was claimed is ours with all that is in it."""
        digest = self.known.get(name)
        path = self.folder / name
        if digest is None or digest == CLAIMED or not path.is_file():
            return digest is not None
        return hash_file(path) == digest

    def check(self, names: Iterable[str], keep: Collection[str] = ()) -> list[str]:
        """Raises FileExistsError naming a file that is in the way of one of ours; returns those of `keep` that are edited."""
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"{self.folder} is a file, and a folder is to be written there; give another output")
        known, edited = self.known, []
        for name in dict.fromkeys(names):
            path = self.folder / name
            if os.path.lexists(path) if name not in known else not self.holds(name):
                if name in keep and name in known:
                    edited.append(name)
                    continue
                what = "was changed since compress wrote it" if name in known else "is in the way and compress did not write it"
                raise FileExistsError(f"{path} {what}; move it away, or give another output")
        return edited

    def claim(self, *names: str) -> None:
        """Say that these files are ours, before they are written. Raises FileExistsError where one is in the way."""
        self.check(names)
        new = [name for name in names if self.own.get(name) != CLAIMED]
        if new or not (self.folder / FILE).is_file():
            self.own.update(dict.fromkeys(new, CLAIMED))
            disk.make(self.folder)
            self.write()
        self.sweep(names)

    def sweep(self, names: Iterable[str]) -> None:
        """Remove what dead processes left of these files and of the manifest, half written."""
        for path in (self.folder / name for name in (FILE, *names)):
            sweep_parts(path.parent, [path.name])

    def settle(self, *names: str) -> None:
        """Take down the digests of files that are written; what was not written after all is not ours."""
        for name in names:
            if (self.folder / name).is_file():
                self.own[name] = hash_file(self.folder / name)
            else:
                del self.own[name]
        self.write()

    @contextlib.contextmanager
    def files(self, *names: str) -> Iterator[list[Path]]:
        """The body writes these files at the paths it is given. Raises FileExistsError where one is in the way."""
        self.claim(*names)
        yield [self.folder / name for name in names]
        self.settle(*names)

    def remove(self, *names: str) -> None:
        """Remove files, and folders with what is in them, where they are ours. Raises FileExistsError for an edited one."""
        ours = [name for name in names if name in self.own]
        self.check(ours)
        for name in ours:
            disk.remove_tree(self.folder / name)
            del self.own[name]
        if ours:
            self.write()


def _inside(folder: Path, name: str) -> bool:
    """Whether a name is that of a file below a folder, with no way out over `..` or a link."""
    parts = PurePath(name).parts
    if not parts or PurePath(name).is_absolute() or ".." in parts:
        return False
    return (folder / name).parent.resolve().is_relative_to(folder.resolve())


def _adopted(folder: Path) -> dict[str, dict[str, str]]:
    """The files of a checkpoint that was written before there were manifests: its report has the digests of its weights."""
    report = read_json(folder / "report.json")
    weights = report.get("files") if isinstance(report, dict) else None
    if not isinstance(weights, dict) or not weights:
        return {}
    found = {str(name): str(digest) for name, digest in weights.items() if _inside(folder, str(name))}
    if not any((folder / name).is_file() and hash_file(folder / name) == digest for name, digest in found.items()):
        return {}
    found |= {name: hash_file(folder / name) for name in _BESIDE if (folder / name).is_file()}
    card = folder / "README.md"
    if card.is_file():
        generated = "Made by `compress fit` from `recipe.yaml`" in card.read_text(encoding="utf-8", errors="replace")
        found[card.name] = hash_file(card) if generated else "edited"
    return {"checkpoint": found}
