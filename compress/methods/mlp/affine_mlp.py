"""An MLP as the best affine map of a given rank: the control of every surrogate with expressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from compress.architecture import Architecture
from compress.checkpoint.units import Artefact
from compress.methods.base import Group, Material, Method, Need, Preview, Replacement
from compress.methods.mlp._equal_cost import equal_rank
from compress.methods.mlp._shared import (
    MLPMethod,
    affine_needs,
    affine_replacement,
    d_model,
    mlp_parameters,
    output_metric,
    parameters_before,
)
from compress.numerics import subspace
from compress.numerics.linalg import largest_first
from compress.numerics.reduced_rank import Fit, Joint, solve
from compress.numerics.statistics import Moments


class Through(BaseModel):
    """The latents of a `symbolic_mlp`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: PositiveInt = Field(description="principal components of the MLP's input that the map reads")
    outputs: PositiveInt = Field(description="principal components of its output that the map writes")


class AffineMLP(MLPMethod):
    """MLP(x) ≈ L R x + b of a given rank, the minimiser of the (loss-weighted) squared error over the calibration tokens."""

    reference = "Reduced-rank regression (Izenman 1975), weighted by the second moment of the loss gradient at the output"
    controls = ("affine",)
    equal_cost = True
    examples = ({"rank": 5}, {"through": {"inputs": 6, "outputs": 3}})
    decided_late = frozenset({"rank"})

    rank: NonNegativeInt = Field(16, description="rank of the map; 0 is the mean output")
    through: Through | None = Field(
        None, description="{inputs, outputs}: least squares between these latents of symbolic_mlp, its control; sets the rank"
    )
    importance: Literal["none", "fisher"] = Field(
        "fisher", description="fisher: weight output errors by the second moment of the loss gradient (one backward pass)"
    )

    @classmethod
    def as_control(cls, control: str, of: Method) -> dict[str, Any]:
        """The map that a surrogate's expressions must beat: its own, or one through the same latents."""
        sees = of.sees()
        if sees is None:
            return {}
        if sees.affine is not None:
            return {"rank": sees.affine, "importance": sees.importance}
        return {"through": {"inputs": sees.inputs, "outputs": sees.outputs}}

    @classmethod
    def at_cost(cls, multiply_adds: int, d_model: int, d_ff: int, architecture: Architecture) -> dict[str, Any]:
        """The rank of as many multiply-adds."""
        return {"rank": equal_rank(multiply_adds, d_model)}

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        """Joint moments of input and output; with `fisher` also those of the loss gradient at the output."""
        # Between latents it is plain least squares, as its counterpart in `symbolic_mlp` is.
        return affine_needs(group, "none" if self.through else self.importance)

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        """One row. Raises ValueError for a rank, or latents, beyond d_model."""
        width = d_model(group, shapes, architecture)
        sizes = {"rank": self.rank} if self.through is None else self.through.model_dump()
        for name, value in sizes.items():
            if value > width:
                raise ValueError(f"{group.modules[-1]}: {name}: {value} given, at most d_model = {width}")
        rank = min(sizes.values())
        # Two factors and a bias.
        after = 2 * rank * width + width
        return [Preview(group.modules[-1], (width, width), mlp_parameters(group, shapes), after, f"affine of rank {rank}")]

    def fit(self, material: Material) -> Artefact:
        """Artefact: mean (2d,) and covariance (2d, 2d) of [x; y], metric (d, d), from which every rank can be solved for."""
        moments = cast(Moments, material.statistics["moments"])
        tensors = {"mean": moments.mean, "covariance": moments.covariance, "metric": output_metric(material)}
        return Artefact(tensors, {"parameters_before": parameters_before(material)})

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        """The map, and its error as a share of the mean output's. Raises ValueError as `between` does."""
        data = artefact.tensors
        # The first half of the joint moments is x, the second y; there are no features.
        joint = Joint(data["mean"], data["covariance"], len(data["mean"]) // 2, 0)
        fit = solve(joint, data["metric"], self.rank) if self.through is None else between(joint, self.through)
        # The mean output, of which the error is told as a share.
        nothing = solve(joint, data["metric"], 0)
        errors = [joint.error(f, data["metric"]) for f in (fit, nothing)]
        row = {
            "parameters_before": artefact.metadata["parameters_before"],
            "relative_error": (errors[0] / max(errors[1], 1e-300)) ** 0.5,
        }
        return affine_replacement(group, fit, row, architecture)


def between(joint: Joint, latents: Through) -> Fit:
    """Least squares from the leading principal components of x (d,) to those of y (d,): P_O (cov(y, z) z), z white.

    Raises ValueError where x varies in fewer directions than are read.
    """
    d = joint.inputs
    covariance = joint.covariance
    if latents.inputs > (moving := subspace.moving(covariance[:d, :d])):
        raise ValueError(
            f"through.inputs: {latents.inputs} given, but the calibrated inputs vary in {moving} directions only; lower it"
        )
    reads = subspace.principal(covariance[:d, :d], latents.inputs)  # (inputs, d)
    # (d, outputs), orthonormal columns.
    writes = largest_first(covariance[d:, d:])[0][:, : latents.outputs]
    matrix = writes.T @ covariance[d:, :d] @ reads.T  # (outputs, inputs)
    # The matrix goes to the side with fewer latents, which makes that the rank.
    left, right = (writes, matrix @ reads) if latents.outputs <= latents.inputs else (writes @ matrix, reads)
    mean_x, mean_y = joint.mean[:d], joint.mean[d:]
    return Fit(left, right, left.new_zeros(len(mean_y), 0), mean_y - left @ (right @ mean_x))
