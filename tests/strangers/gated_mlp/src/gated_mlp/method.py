from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from pydantic import Field

from compress.architecture import Architecture
from compress.checkpoint.units import Artefact
from compress.methods.base import Group, Material, Need, Preview, Replacement
from compress.methods.mlp import MLPMethod, chain_tensors, d_model, mlp_chain, mlp_parameters, parameters_before
from compress.numerics.sample import Sample
from gated_mlp.kind import Gated


def parameters(hidden: int, width: int) -> int:
    return 2 * hidden * (width + 1) + (hidden + 1) * width


class GatedFit(MLPMethod):
    """MLP(x) ≈ O(sigmoid(A x + a) * (B x + b)) + c, gates random, values principal components, O and c ridge least squares."""

    reference = "random features (Rahimi & Recht 2007) behind gates"
    examples = ({"hidden": 16, "rows": 256}, {"hidden": 8, "rows": 256, "ridge": 0.1})

    hidden: int = Field(64, ge=1, description="width of the hidden layer")
    rows: int = Field(4096, ge=16, description="calibration tokens to fit on")
    ridge: float = Field(1e-3, gt=0, description="of the mean energy of a feature")
    sharpness: float = Field(0.5, gt=0, description="standard deviation of what enters a gate")

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        return {"joint": Need(group.modules[0], group.modules[-1], statistic="sample", rows=self.rows)}

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        width = d_model(group, shapes, architecture)
        after = parameters(self.hidden, width)
        return [Preview(group.modules[-1], (width, width), mlp_parameters(group, shapes), after, f"hidden {self.hidden}")]

    def fit(self, material: Material) -> Artefact:
        values = cast(Sample, material.statistics["joint"]).values
        width = values.shape[1] // 2
        x, y = values[:, :width], values[:, width:]
        x_mean, y_mean = x.mean(0), y.mean(0)
        energies, directions = torch.linalg.eigh((x - x_mean).T @ (x - x_mean) / len(x))
        whiten = (directions / energies.clamp_min(1e-6 * energies.max()).sqrt()).T.flip(0)  # (width, width), largest first
        generator = torch.Generator().manual_seed(material.seed)
        mixing = torch.randn(self.hidden, width, generator=generator, dtype=torch.float64) / width**0.5
        gate = self.sharpness * mixing @ whiten
        value = whiten[torch.arange(self.hidden) % width]
        gate_bias, value_bias = -gate @ x_mean, -value @ x_mean
        features = torch.sigmoid(x @ gate.T + gate_bias) * (x @ value.T + value_bias)
        mean = features.mean(0)
        centred = features - mean
        gram = centred.T @ centred
        gram = gram + self.ridge * gram.diagonal().mean() * torch.eye(self.hidden, dtype=torch.float64)
        outer = torch.linalg.solve(gram, centred.T @ (y - y_mean)).T  # (width, hidden)
        left = y - y_mean - centred @ outer.T
        return Artefact(
            {
                "gate": gate,
                "gate_bias": gate_bias,
                "value": value,
                "value_bias": value_bias,
                "outer": outer,
                "offset": y_mean - outer @ mean,
            },
            {
                "parameters_before": parameters_before(material),
                "relative_error": float((left.square().sum() / (y - y_mean).square().sum().clamp_min(1e-300)).sqrt()),
            },
        )

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        module, outer = group.modules[-1], architecture.mlp_outer
        fitted = artefact.tensors
        width, hidden = fitted["outer"].shape
        kind = Gated(outer=outer, d_model=width, hidden=hidden)
        tensors = {
            f"{module}.gate.weight": fitted["gate"],
            f"{module}.gate.bias": fitted["gate_bias"],
            f"{module}.value.weight": fitted["value"],
            f"{module}.value.bias": fitted["value_bias"],
            f"{module}.{outer}.weight": fitted["outer"][None],
            f"{module}.{outer}.bias": fitted["offset"],
        }
        row = {"module": module, "kind": kind.kind, "rank": None, "parameters": parameters(hidden, width), **artefact.metadata}
        return Replacement(mlp_chain(group, kind), {**chain_tensors(group), **tensors}, group.modules, (row,))

    def layer_cost(
        self, made: Replacement, layer: int, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture
    ) -> tuple[int, int]:
        before, _ = super().layer_cost(made, layer, shapes, architecture)  # that counts what has two dimensions
        (outer,) = (tensor for tensor in made.tensors.values() if tensor.ndim == 3)  # (1, width, hidden)
        return before, 3 * outer.numel()
