"""The steps of a recipe with its MLP surrogates exchanged for a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress.methods.base import Method
from compress.recipe import Step


def control_steps(steps: Sequence[Step], control: str) -> list[Step]:
    """The steps with every MLP surrogate replaced by one control on the same layers; other steps as they are."""

    def swap(step: Step) -> Step:
        if step.options.replaces != "mlp":
            return step
        data: Mapping[str, object]
        if control == "pca":
            latents = getattr(step.options, "latents", None)
            sizes = {"inputs": latents.inputs, "outputs": latents.outputs} if latents is not None else {}
            data = {"method": "mlp_bottleneck", **sizes}
        elif control == "affine":
            data = {"method": "affine_mlp", **_affine_control(step.options)}
        else:
            data = {"method": "skip_mlp", "output": control}
        return Step.model_validate({**data, "targets": step.targets})

    return [swap(step) for step in steps]


def _affine_control(options: Method) -> dict[str, object]:
    """Options of the affine map that a surrogate's expressions must beat."""
    if (rank := getattr(options, "affine", None)) is not None:  # residual_mlp without its expressions
        return {"rank": rank, "importance": getattr(options, "importance", "fisher")}
    latents = getattr(options, "latents", None)
    return {} if latents is None else {"through": {"inputs": latents.inputs, "outputs": latents.outputs}}
