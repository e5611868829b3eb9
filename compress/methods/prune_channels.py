"""Structured MLP pruning: whole intermediate channels go, the rest of the down-projection is refitted. The result is smaller
linears.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.architecture import Architecture
from compress.methods.base import Artefact, Group, Material, Method, Need, Preview, Replacement
from compress.methods.skip_mlp import mlp_parameters
from compress.numerics.activation import FORMS, recognise, with_input
from compress.numerics.expression import complexity
from compress.numerics.front import Candidate, Front
from compress.numerics.linalg import symmetric_sqrt
from compress.numerics.operations import Tree
from compress.numerics.program import compile_program, evaluate_numpy
from compress.numerics.statistics import Moments
from compress.plan import ModuleSpec

DAMPING = 1e-6  # of the mean channel variance
GRADIENT_DAMPING = 1e-2


class PruneChannels(Method):
    """Keep the channels whose removal, with the others refitted by least squares, would cost most on the calibration data."""

    reference = (
        "Optimal brain surgeon (Hassibi & Stork 1993) over channels, as in ZipLM; the comparison SFSD-LLM makes with LLM-Pruner"
    )
    replaces = "mlp"

    keep: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="fraction of the intermediate channels that remain"
    )
    channels: Annotated[int, Field(ge=1)] | None = Field(None, description="how many remain, instead of keep")
    importance: Literal["none", "fisher"] = Field(
        "none", description="fisher: weight output errors by the loss gradient's second moment"
    )

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        down = architecture.module(group.layer, "down")
        needs = {"down": Need(down)}
        return needs | ({"gradient": Need(down, statistic="gradient")} if self.importance == "fisher" else {})

    def kept(self, d_ff: int) -> int:
        """How many channels remain of d_ff."""
        if (self.keep is None) == (self.channels is None):
            raise ValueError("prune_channels: give exactly one of keep and channels")
        count = self.channels if self.channels is not None else max(1, round((self.keep or 0) * d_ff))
        if count > d_ff:
            raise ValueError(f"prune_channels: channels: {count} given; the MLP has {d_ff}")
        return count

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        shape = shapes[f"{architecture.module(group.layer, 'down')}.weight"]
        d_model, d_ff = reversed(shape) if architecture.conv1d else shape
        before, count = mlp_parameters(group, shapes), self.kept(d_ff)
        after = (before - d_model) * count // d_ff + d_model
        return [Preview(group.modules[-1], (d_model, d_ff), before, after, f"{count} of {d_ff} channels")]

    def fit(self, material: Material) -> Artefact:
        architecture, layer = material.architecture, material.group.layer
        moments = cast(Moments, material.statistics["down"])
        weight, bias = material.linear(architecture.module(layer, "down"))
        metric = torch.eye(weight.shape[0], dtype=torch.float64)
        if self.importance == "fisher":
            second = cast(Moments, material.statistics["gradient"]).second_moment
            metric = second + GRADIENT_DAMPING * float(second.diagonal().mean()) * metric
        kept, refitted = prune(weight, moments.covariance, metric, self.kept(weight.shape[1]))
        offset = weight @ moments.mean - refitted @ moments.mean[kept]
        total = float((weight @ moments.covariance * weight).sum())
        difference = weight.clone()
        difference[:, kept] -= refitted
        error = float((difference @ moments.covariance * difference).sum())
        tensors = {"kept": kept, "down.weight": refitted, "down.bias": offset if bias is None else offset + bias}
        for role in architecture.mlp_roles[:-1]:
            rows, row_bias = material.linear(architecture.module(layer, role))
            chosen = torch.cat([kept, kept + weight.shape[1]]) if role == "gate_up" else kept
            tensors[f"{role}.weight"] = rows[chosen]
            if row_bias is not None:
                tensors[f"{role}.bias"] = row_bias[chosen]
        return Artefact(tensors, {"d_ff": weight.shape[1], "relative_error": (error / max(total, 1e-300)) ** 0.5})

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        specs: list[ModuleSpec] = []
        tensors: dict[str, Tensor] = {}
        for role in architecture.mlp_roles if len(artefact.tensors["kept"]) < artefact.metadata["d_ff"] else ():
            module = architecture.module(group.layer, role)
            weight = artefact.tensors[f"{role}.weight"]
            bias = artefact.tensors.get(f"{role}.bias")
            options: dict[str, Any] = {
                "in_features": weight.shape[1],
                "out_features": weight.shape[0],
                "bias": bias is not None,
            }
            specs.append(ModuleSpec(module=module, kind="dense_linear", options=options))
            tensors |= {f"{module}.weight": weight} | ({} if bias is None else {f"{module}.bias": bias})
        d_model, count = artefact.tensors["down.weight"].shape
        d_ff = artefact.metadata["d_ff"]
        readers = sum(len(artefact.tensors[f"{role}.weight"]) // count for role in architecture.mlp_roles[:-1])
        row = {
            "module": group.modules[-1],
            "kind": "pruned",
            "rank": count,
            "parameters_before": (readers + 1) * d_ff * d_model,
            "parameters": (readers + 1) * count * d_model,
            "relative_error": artefact.metadata["relative_error"],
        }
        return Replacement(tuple(specs), tensors, tuple(s.module for s in specs), (row,))


def prune(weight: Tensor, covariance: Tensor, metric: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """(kept channel indices (keep,), refitted weight (d_out, keep)) for y = weight @ h, h with this covariance.

    One channel goes at a time: the one whose removal raises tr(metric · error covariance) least when all others are refitted,
    which is (wᵀ metric w)_j / (covariance⁻¹)_jj; both are then downdated. The end result is the least-squares refit on what
    is kept.
    """
    d_ff = weight.shape[1]
    floor = DAMPING * float(covariance.diagonal().mean()) or 1.0
    damped = covariance + floor * torch.eye(d_ff, dtype=torch.float64)
    inverse = torch.linalg.inv(damped)
    current = weight.clone()
    gone = torch.zeros(d_ff, dtype=torch.bool)
    for _ in range(d_ff - keep):
        energy = (current * (metric @ current)).sum(0)
        cost = torch.where(gone, torch.inf, energy / inverse.diagonal().clamp_min(1e-300))
        j = int(cost.argmin())
        row = inverse[j] / inverse[j, j]
        current -= current[:, j : j + 1] * row
        inverse -= torch.outer(inverse[:, j], row)
        inverse[j], inverse[:, j] = 0.0, 0.0
        inverse[j, j] = 1.0
        gone[j] = True
    kept = torch.nonzero(~gone).flatten()
    refitted = torch.linalg.solve(damped[kept][:, kept], damped[kept] @ weight.T).T
    return kept, refitted


def neurons(material: Material, x: Tensor, metric: Tensor, count: int) -> tuple[Tensor, Tensor, list[Front]]:
    """The `count` neurons that an affine map misses most, as what they read and their own formulas: (basis (inputs, d_model),
    offset (inputs,), one front of one exact expression each).

    Chosen as `prune` does, on what the regression on the MLP's input leaves of every neuron over the rows x (n, d_model).
    """
    architecture, layer = material.architecture, material.group.layer
    name, tree = _activation(material)
    parts = [material.linear(architecture.module(layer, role)) for role in architecture.mlp_roles[:-1]]
    reads = [(w, torch.zeros(len(w), dtype=torch.float64) if b is None else b) for w, b in parts]
    if "gate_up" in architecture.mlp_roles:
        reads = [(w, b) for w, b in zip(reads[0][0].chunk(2), reads[0][1].chunk(2), strict=True)]
    program = compile_program([tree], 1, 0)
    hidden = torch.from_numpy(evaluate_numpy(program, (x @ reads[0][0].T + reads[0][1]).numpy().reshape(-1, 1), []))
    hidden = hidden.reshape(len(x), -1)
    for weight, bias in reads[1:]:
        hidden = hidden * (x @ weight.T + bias)
    centred_x, centred = x - x.mean(dim=0), hidden - hidden.mean(dim=0)
    _, inverse = symmetric_sqrt(centred_x.T @ centred_x / len(x))
    rest = centred - centred_x @ (inverse @ inverse @ (centred_x.T @ centred / len(x)))
    down, _ = material.linear(architecture.module(layer, "down"))
    kept, _ = prune(down, rest.T @ rest / len(x), metric, count)
    basis = torch.cat([w[kept] for w, _ in reads])  # gate 0, gate 1, …, up 0, up 1, …: runtimes read blocks fastest
    offset = torch.cat([b[kept] for _, b in reads])
    fronts = []
    for k in range(count):
        first, *others = range(k, count * len(reads), count)
        own = with_input(tree, first)
        formula = ["mul", own, *(["var", i] for i in others)] if others else own
        fronts.append(Front((Candidate(formula, (), complexity(formula), 0.0, 0.0, f"neuron ({name})"),)))
    return basis, offset, fronts


def _activation(material: Material) -> tuple[str, Tree]:
    """The MLP's activation function in closed form, found by its values."""
    prefix = material.architecture.layer(material.group.layer) + "."
    seen = []
    for module in (material.layer.get_submodule(name.removeprefix(prefix)) for name in material.group.modules):
        for inner in module.modules():
            if [*inner.children(), *inner.parameters()] or isinstance(inner, nn.Dropout):
                continue
            seen.append(type(inner).__name__)
            if (found := recognise(inner)) is not None:
                return found
    raise ValueError(
        f"{material.group.modules[-1]}: kind: neurons knows the activations {', '.join(FORMS)}; this MLP has {seen}; "
        "use kind: gradient"
    )
