"""The steps of a recipe with its MLP surrogates exchanged for a control."""

from __future__ import annotations

from collections.abc import Sequence

from compress import methods
from compress.recipe import Step


def control_steps(steps: Sequence[Step], control: str) -> list[Step]:
    """The steps with every MLP surrogate replaced by one control on the same layers; other steps as they are."""
    name = next(name for name in methods.names() if control in methods.load(name).controls)
    method = methods.load(name)

    def swap(step: Step) -> Step:
        if step.options.replaces != "mlp":
            return step  # linears and attentions are not what a control stands for
        return Step.model_validate({"method": name, **method.as_control(control, step.options), "targets": step.targets})

    return [swap(step) for step in steps]
