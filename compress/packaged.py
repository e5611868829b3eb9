"""The packaged recipes: inside an installed wheel, or beside the package in a source checkout."""

from __future__ import annotations

import os
from pathlib import Path


def recipes_folder() -> Path:
    """Where they are."""
    inside = Path(__file__).parent / "_recipes"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "recipes"


def packaged(path: str | os.PathLike[str]) -> Path:
    """`path` itself, or the packaged recipe of that name where no such file is here.

    >>> packaged("quickstart").name
    'quickstart.yaml'
    """
    path = Path(path)
    if path.is_file():
        return path
    packaged = recipes_folder() / (path.name if path.suffix else f"{path.name}.yaml")
    return packaged if packaged.is_file() else path
