"""What a method refuses from shapes alone, as `prepare` would, without a model on disk."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from checkpoints import tiny_config
from recipes_for_tests import tiny_recipe
from transformers import AutoModelForCausalLM

from compress.architecture import architecture
from compress.fitting.units import units_of
from conformance.case import Case


@cache
def refusal(case: Case) -> str | None:
    """The message; None where the case is taken, and for kinds."""
    if case.what == "kind":
        return None
    row = architecture(case.architecture)
    try:
        recipe = tiny_recipe(Path("model"), Path("out"), {"method": case.name, "layers": "all", **case.options})
        for unit in units_of(recipe, row, case.layers):
            unit.method.preview(unit.group, _shapes(case.architecture), row)
    except (ValueError, NotImplementedError) as error:
        return str(error)
    return None


@cache
def _shapes(model_type: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(model_type))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
