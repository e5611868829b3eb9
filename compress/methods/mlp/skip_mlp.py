"""Leave an MLP out: the controls every surrogate must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import Field

from compress.architecture import Architecture
from compress.checkpoint.units import Artefact
from compress.kinds.contract import Kind
from compress.kinds.identity_mlp import Identity
from compress.kinds.mean_mlp import Mean
from compress.kinds.zero_mlp import Zero
from compress.methods.base import Group, Material, Method, Need, Preview, Replacement
from compress.methods.mlp._shared import MLPMethod, chain_tensors, mlp_chain, mlp_parameters, parameters_before
from compress.numerics.statistics import Moments


class SkipMLP(MLPMethod):
    """MLP(x) = x (the published control), 0, or the mean of its calibrated outputs."""

    reference = "SymTorch, section 4.1: identity control; zero and mean added"
    controls = ("identity", "zero", "mean")
    examples = ({"output": "identity"}, {"output": "zero"}, {"output": "mean"})

    output: Literal["identity", "zero", "mean"] = Field("identity", description="what stands for the MLP's output")

    @classmethod
    def as_control(cls, control: str, of: Method) -> dict[str, Any]:
        """The control's name is the option."""
        return {"output": control}

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        """The mean of what down reads, for `mean`; else nothing."""
        if self.output != "mean":
            return {}
        down = architecture.module(group.layer, "down")
        return {"down": Need(input_of=down)}  # mean(W h + b) = W mean(h) + b: the MLP's output need not be read

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        """One row."""
        before = mlp_parameters(group, shapes)
        d_model = shapes[f"{architecture.module(group.layer, 'down')}.weight"][1 if architecture.conv1d else 0]
        after = d_model if self.output == "mean" else 0
        return [Preview(group.modules[-1], (d_model, d_model), before, after, self.output)]

    def fit(self, material: Material) -> Artefact:
        """Artefact: mean (d_model,) of the MLP's outputs, for `mean`; else no tensor."""
        about = {"parameters_before": parameters_before(material)}
        if self.output != "mean":
            return Artefact({}, about)
        weight, bias = material.linear(material.architecture.module(material.group.layer, "down"))
        mean = weight @ cast(Moments, material.statistics["down"]).mean
        return Artefact({"mean": mean if bias is None else mean + bias}, about)

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        """The module, with an empty weight in the place of the output projection's."""
        outer, module = architecture.mlp_outer, group.modules[-1]
        tensors = {f"{module}.{outer}.weight": torch.empty(0, dtype=torch.float64)}
        kind: Kind = Identity(outer=outer) if self.output == "identity" else Zero(outer=outer)
        if self.output == "mean":
            kind = Mean(outer=outer, d_model=artefact.tensors["mean"].shape[0])
            tensors[f"{module}.{outer}.bias"] = artefact.tensors["mean"]
        numbers = sum(tensor.numel() for tensor in tensors.values())
        row = {"module": module, "kind": kind.kind, "rank": None, "parameters": numbers, **artefact.metadata}
        return Replacement(mlp_chain(group, kind), {**chain_tensors(group), **tensors}, group.modules, (row,))
