"""Where a checkpoint comes from, as its recipe.yaml says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compress import data
from compress.checkpoint.locate import locate
from compress.recipe import Evaluation, ModelReference, Recipe


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
    recipe: Mapping[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    model = ModelReference.model_validate(recipe["model"])
    # What recipe.yaml does not spell out was the recipe's default.
    default = Recipe.model_fields["calibration"].get_default(call_default_factory=True)
    return Record(
        locate(data.resolve_model(model.name), model.revision),
        data.TextSource.model_validate(recipe["calibration"]) if "calibration" in recipe else default,
        Evaluation.model_validate(recipe.get("evaluation") or {}),
    )
