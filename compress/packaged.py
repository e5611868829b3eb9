"""The packaged recipes: inside an installed wheel, or beside the package in a source checkout."""

from __future__ import annotations

import os
from pathlib import Path


def recipes_folder() -> Path:
    """Where they are."""
    inside = Path(__file__).parent / "_recipes"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "recipes"


def packaged(path: str | os.PathLike[str]) -> Path:
    """`path` itself, or the packaged recipe of that bare name where no such file is here. A path is never another file.

    >>> packaged("quickstart").name
    'quickstart.yaml'
    >>> packaged("mine/quickstart.yaml").parent.name
    'mine'
    """
    text = os.fspath(path)
    path = Path(text)
    if path.is_file() or {"/", os.sep} & set(text):
        return path
    found = recipes_folder() / (path.name if path.suffix else f"{path.name}.yaml")
    return found if found.is_file() else path


def recipe_file(path: str | os.PathLike[str]) -> Path:
    """The file of a recipe, a packaged one by its bare name. Raises FileNotFoundError, with what may be meant."""
    file = packaged(path)
    if file.is_file():
        return file
    if file.is_dir():
        raise FileNotFoundError(f"no recipe {str(file)!r}: it is a folder; give a .yaml file")
    same = packaged(file.name)
    hint = f"`{same.stem}` is the packaged one of that name; " if same.is_file() else ""
    raise FileNotFoundError(f"no recipe {str(path)!r}; {hint}`compress recipes ls` lists the packaged ones")
