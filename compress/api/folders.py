# pyright: strict
"""The folder that a caller means: of a checkpoint, or of any model."""

from __future__ import annotations

import os
from pathlib import Path

AnyPath = str | os.PathLike[str]  # a Checkpoint is one too


def checkpoint_folder(path: AnyPath) -> Path:
    """The path of a checkpoint or model folder.

    Raises FileNotFoundError where it has no config.json, saying so if a fit was interrupted there.
    """
    from compress.checkpoint.lock import locked
    from compress.checkpoint.swap import interrupted, recover
    from compress.checkpoint.work import work_of

    folder = Path(path)
    if folder.is_dir() and interrupted(folder):
        with locked(folder):
            recover(folder)
    if not (folder / "config.json").is_file():
        hint = " (an unfinished fit: run it again to continue)" if work_of(folder).is_dir() else ""
        raise FileNotFoundError(f"{folder} is no checkpoint folder: it has no config.json{hint}")
    return folder


def model_folder(model: AnyPath) -> Path:
    """The folder of a checkpoint, a model folder, a hub id, or "novella".

    Raises FileNotFoundError where there is none, as `checkpoint_folder` does for one that is here.
    """
    from compress.checkpoint.locate import locate
    from compress.data import resolve_model

    name = resolve_model(os.fspath(model))
    path = Path(name).expanduser()
    return checkpoint_folder(path) if path.is_dir() else locate(name)
