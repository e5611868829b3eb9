"""Where a checkpoint comes from, as its recipe.yaml says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from compress import data
from compress.checkpoint.locate import locate
from compress.reading import yaml_text
from compress.recipe import Evaluation, ModelReference, Recipe
from compress.validation import checked


@dataclass(frozen=True)
class Record:
    """What a checkpoint's recipe.yaml says of its origin."""

    original: ModelReference
    calibration: data.TextSource
    evaluation: Evaluation

    @cached_property
    def model(self) -> Path:
        """The original's folder. Raises FileNotFoundError where it is not here: it may have been in memory only."""
        return locate(data.resolve_model(self.original.name), self.original.revision)


def record(checkpoint: Path) -> Record:
    """Read recipe.yaml beside a checkpoint's weights. Raises FileNotFoundError where it is missing."""
    file = checkpoint / "recipe.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {checkpoint}")
    recipe = yaml_text.read(file)
    if not isinstance(recipe, dict) or "model" not in recipe:
        raise ValueError(f"{file} names no model; it is no recipe.yaml that `compress fit` wrote")
    # What recipe.yaml does not spell out was the recipe's default.
    default = Recipe.model_fields["calibration"].get_default(call_default_factory=True)
    # Section by section: the methods of its steps may belong to a package that is not installed here.
    return Record(
        checked(ModelReference, recipe["model"]),
        checked(data.TextSource, recipe["calibration"]) if "calibration" in recipe else default,
        checked(Evaluation, recipe.get("evaluation") or {}),
    )
