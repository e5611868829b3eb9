"""The packaged recipes as commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress.packaged import packaged, recipes_folder


def add_to(app: typer.Typer) -> None:
    """Register the commands of this file."""
    recipes = typer.Typer(no_args_is_help=True, help="The packaged recipes.")
    recipes.command("ls")(ls)
    recipes.command("cp")(cp)
    app.add_typer(recipes, name="recipes")


def ls() -> None:
    """List the packaged recipes with their first line."""
    for path in sorted(recipes_folder().glob("*.yaml")):
        first = path.read_text().splitlines()[0].lstrip("# ")
        print(f"{path.name:<32} {first}")


def cp(name: str, target: Annotated[Path, typer.Argument(help="File or folder to copy to.")] = Path()) -> None:
    """Copy a packaged recipe, to edit it."""
    from compress.checkpoint.files import write_text

    source = packaged(Path(name))
    if not source.is_file():
        raise FileNotFoundError(f"no recipe {name!r}; `compress recipes ls` lists the packaged ones")
    destination = target / source.name if target.is_dir() else target
    if destination.exists():
        raise ValueError(f"{destination} exists already; give another target")
    write_text(destination, source.read_text())
    print(destination)
