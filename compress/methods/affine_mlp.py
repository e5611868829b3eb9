"""An MLP as the best affine map of a given rank: the control of every surrogate with expressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt
from torch import Tensor

from compress.architecture import Architecture
from compress.methods.base import Artefact, Group, Material, Method, Need, Preview, Replacement, chain_tensors, mlp_chain
from compress.methods.low_rank import GRADIENT_DAMPING
from compress.methods.skip_mlp import mlp_parameters, parameters_before
from compress.numerics import subspace
from compress.numerics.joint_regression import Fit, Joint, solve
from compress.numerics.statistics import Moments
from compress.plan import ModuleSpec


class Through(BaseModel):
    """The latents of a `symbolic_mlp`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: PositiveInt = Field(description="principal components of the MLP's input that the map reads")
    outputs: PositiveInt = Field(description="principal components of its output that the map writes")


class AffineMLP(Method):
    """MLP(x) ≈ L R x + b of a given rank, the minimiser of the (loss-weighted) squared error over the calibration tokens."""

    reference = "Reduced-rank regression (Izenman 1975), weighted by the second moment of the loss gradient at the output"
    replaces = "mlp"
    decided_late = frozenset({"rank"})

    rank: NonNegativeInt = Field(16, description="rank of the map; 0 is the mean output")
    through: Through | None = Field(
        None, description="{inputs, outputs}: least squares between these latents of symbolic_mlp, its control; sets the rank"
    )
    importance: Literal["none", "fisher"] = Field(
        "fisher", description="fisher: weight output errors by the second moment of the loss gradient (one backward pass)"
    )

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        return affine_needs(group, "none" if self.through else self.importance)

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        width = d_model(group, shapes, architecture)
        sizes = {"rank": self.rank} if self.through is None else self.through.model_dump()
        for name, value in sizes.items():
            if value > width:
                raise ValueError(f"{group.modules[-1]}: {name}: {value} given, at most d_model = {width}")
        rank = min(sizes.values())
        after = 2 * rank * width + width
        return [Preview(group.modules[-1], (width, width), mlp_parameters(group, shapes), after, f"affine of rank {rank}")]

    def fit(self, material: Material) -> Artefact:
        moments = cast(Moments, material.statistics["moments"])
        tensors = {"mean": moments.mean, "covariance": moments.covariance, "metric": output_metric(material)}
        return Artefact(tensors, {"parameters_before": parameters_before(material)})

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        data = artefact.tensors
        joint = Joint(data["mean"], data["covariance"], len(data["mean"]) // 2, 0)
        fit = solve(joint, data["metric"], self.rank) if self.through is None else between(joint, self.through)
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
    writes = torch.linalg.eigh(covariance[d:, d:])[1].flip(1)[:, : latents.outputs]
    matrix = writes.T @ covariance[d:, :d] @ reads.T  # (outputs, inputs)
    left, right = (writes, matrix @ reads) if latents.outputs <= latents.inputs else (writes @ matrix, reads)
    mean_x, mean_y = joint.mean[:d], joint.mean[d:]
    return Fit(left, right, left.new_zeros(len(mean_y), 0), mean_y - left @ (right @ mean_x))


def affine_needs(group: Group, importance: str) -> dict[str, Need]:
    """The joint moments of an MLP's input and output, and those of the loss gradient at its output."""
    first, last = group.modules[0], group.modules[-1]
    gradient = {"gradient": Need(last, statistic="gradient")} if importance == "fisher" else {}
    return {"moments": Need(first, last), **gradient}


def output_metric(material: Material) -> Tensor:
    """Damped second moment of the loss gradient at the MLP's output (d_model, d_model); the identity where it was not asked."""
    moments = material.statistics.get("gradient")
    if moments is None:
        width = cast(Moments, material.statistics["moments"]).mean.shape[0] // 2
        return torch.eye(width, dtype=torch.float64)
    metric = cast(Moments, moments).second_moment
    floor = GRADIENT_DAMPING * float(metric.diagonal().mean()) or 1.0  # 1: the loss felt nothing of this MLP
    return metric + floor * torch.eye(len(metric), dtype=torch.float64)


def affine_replacement(group: Group, fit: Fit, row: Mapping[str, Any], architecture: Architecture) -> Replacement:
    """The Plan's part for y = left @ right @ x + bias; the mean MLP at rank 0."""
    module, outer = group.modules[-1], architecture.mlp_outer
    width, rank = fit.left.shape
    options: dict[str, Any] = {"outer": outer, "d_model": width}
    tensors = {f"{outer}.bias": fit.bias}
    if rank:
        # Balanced scales, which 16-bit storage rounds best.
        scale = (fit.right.norm(dim=1) / fit.left.norm(dim=0).clamp_min(1e-300)).clamp_min(1e-300).sqrt()
        tensors |= {f"{outer}.weight": fit.left * scale, "basis": fit.right / scale[:, None]}
        options["rank"] = rank
    else:
        tensors[f"{outer}.weight"] = torch.empty(0, dtype=torch.float64)
    kind = "affine_mlp" if rank else "mean_mlp"
    specs = mlp_chain(group, ModuleSpec(module=module, kind=kind, options=options))
    named = {f"{module}.{name}": tensor for name, tensor in tensors.items()}
    numbers = sum(t.numel() for t in tensors.values())
    report = {"module": module, "kind": kind, "rank": rank, "parameters": numbers, "multiply_adds": 2 * rank * width, **row}
    return Replacement(specs, {**chain_tensors(group), **named}, group.modules, (report,))


def d_model(group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> int:
    return shapes[f"{architecture.module(group.layer, 'down')}.weight"][1 if architecture.conv1d else 0]
