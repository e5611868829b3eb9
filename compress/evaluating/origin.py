"""Where a checkpoint comes from, as its recipe.yaml says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compress import data
from compress.checkpoint.locate import locate
from compress.reading import yaml_text
from compress.recipe import Evaluation, ModelReference, Recipe
from compress.validation import checked


@dataclass(frozen=True)
class Record:
    """What a checkpoint's recipe.yaml says of its origin."""

    model: Path
    calibration: data.TextSource
    evaluation: Evaluation


def record(checkpoint: Path) -> Record:
    """Read recipe.yaml beside a checkpoint's weights. Raises FileNotFoundError where it, or the model it names, is missing."""
    file = checkpoint / "recipe.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {checkpoint}")
    recipe = yaml_text.read(file)
    if not isinstance(recipe, dict) or "model" not in recipe:
        raise ValueError(f"{file} names no model; it is no recipe.yaml that `compress fit` wrote")
    # Section by section: the methods of its steps may belong to a package that is not installed here.
    model = checked(ModelReference, recipe["model"])
    # What recipe.yaml does not spell out was the recipe's default.
    default = Recipe.model_fields["calibration"].get_default(call_default_factory=True)
    return Record(
        locate(data.resolve_model(model.name), model.revision),
        checked(data.TextSource, recipe["calibration"]) if "calibration" in recipe else default,
        checked(Evaluation, recipe.get("evaluation") or {}),
    )
