"""Structured MLP pruning: whole intermediate channels go, the rest of the down-projection is refitted. The result is smaller
linears.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from compress.architecture import Architecture
from compress.checkpoint.units import Artefact
from compress.kinds.dense_linear import Dense
from compress.methods.base import Group, Material, Need, Preview, Replacement
from compress.methods.mlp._equal_cost import equal_channels
from compress.methods.mlp._shared import MLPMethod, mlp_parameters
from compress.numerics.conventions import damped
from compress.numerics.pruning import prune
from compress.numerics.statistics import Moments
from compress.plan import ModuleSpec

GRADIENT_DAMPING = 1e-2


class PruneChannels(MLPMethod):
    """Keep the channels whose removal, with the others refitted by least squares, would cost most on the calibration data."""

    reference = (
        "Optimal brain surgeon (Hassibi & Stork 1993) over channels, as in ZipLM; the comparison SFSD-LLM makes with LLM-Pruner"
    )
    equal_cost = True
    examples = ({"keep": 0.5}, {"channels": 20, "importance": "fisher"})
    whole: ClassVar[Mapping[str, Any] | None] = {"keep": 1.0, "channels": None}

    keep: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="fraction of the intermediate channels that remain"
    )
    channels: Annotated[int, Field(ge=1)] | None = Field(None, description="how many remain, instead of keep")
    importance: Literal["none", "fisher"] = Field(
        "none", description="fisher: weight output errors by the loss gradient's second moment"
    )

    @classmethod
    def at_cost(cls, multiply_adds: int, d_model: int, d_ff: int, architecture: Architecture) -> dict[str, Any]:
        """As many channels as cost that much, chosen by what the loss feels."""
        channels = min(d_ff, equal_channels(multiply_adds, d_model, architecture))
        return {"channels": channels, "importance": "fisher"}

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        """Moments of the channels; with `fisher` also those of the loss gradient at the output."""
        down = architecture.module(group.layer, "down")
        needs = {"down": Need(down)}
        return needs | ({"gradient": Need(down, statistic="gradient")} if self.importance == "fisher" else {})

    def kept(self, d_ff: int) -> int:
        """How many channels remain of d_ff."""
        if (self.keep is None) == (self.channels is None):
            raise ValueError("prune_channels: give exactly one of keep and channels")
        # Never none: an MLP without channels would be its bias.
        count = self.channels if self.channels is not None else max(1, round((self.keep or 0) * d_ff))
        if count > d_ff:
            raise ValueError(f"prune_channels: channels: {count} given; the MLP has {d_ff}")
        return count

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        """One row. Raises ValueError where keep and channels do not give one count within d_ff."""
        shape = shapes[f"{architecture.module(group.layer, 'down')}.weight"]
        d_model, d_ff = reversed(shape) if architecture.conv1d else shape
        before, count = mlp_parameters(group, shapes), self.kept(d_ff)
        # Everything but down's bias goes in proportion to the channels.
        after = (before - d_model) * count // d_ff + d_model
        return [Preview(group.modules[-1], (d_model, d_ff), before, after, f"{count} of {d_ff} channels")]

    def fit(self, material: Material) -> Artefact:
        """Artefact: kept channels (count,), rising, the linears without the others, and down refitted with a bias."""
        architecture, layer = material.architecture, material.group.layer
        moments = cast(Moments, material.statistics["down"])
        weight, bias = material.linear(architecture.module(layer, "down"))
        metric = torch.eye(weight.shape[0], dtype=torch.float64)
        if self.importance == "fisher":
            second = cast(Moments, material.statistics["gradient"]).second_moment
            metric = damped(second, GRADIENT_DAMPING)
        kept, refitted = prune(weight, moments.covariance, metric, self.kept(weight.shape[1]))
        # The bias keeps the mean output: b + W mean − W' mean_kept.
        offset = weight @ moments.mean - refitted @ moments.mean[kept]
        # Unweighted, whatever chose the channels: the share of the output's variance that is lost.
        total = float((weight @ moments.covariance * weight).sum(dim=0).sum())
        difference = weight.clone()
        difference[:, kept] -= refitted
        error = float((difference @ moments.covariance * difference).sum(dim=0).sum())
        tensors = {"kept": kept, "down.weight": refitted, "down.bias": offset if bias is None else offset + bias}
        for role in architecture.mlp_roles[:-1]:
            rows, row_bias = material.linear(architecture.module(layer, role))
            # Of a fused one both halves: the gate's rows and those of up.
            chosen = torch.cat([kept, kept + weight.shape[1]]) if role == "gate_up" else kept
            tensors[f"{role}.weight"] = rows[chosen]
            if row_bias is not None:
                tensors[f"{role}.bias"] = row_bias[chosen]
        return Artefact(tensors, {"d_ff": weight.shape[1], "relative_error": (error / max(total, 1e-300)) ** 0.5})

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        """Smaller dense linears, or no specs where every channel stays."""
        specs: list[ModuleSpec] = []
        tensors: dict[str, Tensor] = {}
        # With every channel kept, the MLP stays the original.
        for role in architecture.mlp_roles if len(artefact.tensors["kept"]) < artefact.metadata["d_ff"] else ():
            module = architecture.module(group.layer, role)
            weight = artefact.tensors[f"{role}.weight"]
            bias = artefact.tensors.get(f"{role}.bias")
            kind = Dense(in_features=weight.shape[1], out_features=weight.shape[0], bias=bias is not None)
            specs.append(kind.spec(module))
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
