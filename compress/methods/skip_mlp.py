"""Leave an MLP out: the controls every surrogate must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from pydantic import Field

from compress.architecture import Architecture
from compress.methods.base import Artefact, Group, Material, Method, Need, Preview, Replacement, chain_tensors, mlp_chain
from compress.numerics.statistics import Moments
from compress.plan import ModuleSpec


class SkipMLP(Method):
    """MLP(x) = x (the published control), 0, or the mean of its calibrated outputs."""

    reference = "SymTorch, section 4.1: identity control; zero and mean added"
    replaces = "mlp"

    output: Literal["identity", "zero", "mean"] = Field("identity", description="what stands for the MLP's output")

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        if self.output != "mean":
            return {}
        down = architecture.module(group.layer, "down")
        return {"down": Need(input_of=down)}  # mean(W h + b) = W mean(h) + b: the MLP's output need not be read

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        before = mlp_parameters(group, shapes)
        d_model = shapes[f"{architecture.module(group.layer, 'down')}.weight"][1 if architecture.conv1d else 0]
        after = d_model if self.output == "mean" else 0
        return [Preview(group.modules[-1], (d_model, d_model), before, after, self.output)]

    def fit(self, material: Material) -> Artefact:
        about = {"parameters_before": parameters_before(material)}
        if self.output != "mean":
            return Artefact({}, about)
        weight, bias = material.linear(material.architecture.module(material.group.layer, "down"))
        mean = weight @ cast(Moments, material.statistics["down"]).mean
        return Artefact({"mean": mean if bias is None else mean + bias}, about)

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        outer, module = architecture.mlp_outer, group.modules[-1]
        options: dict[str, str | int] = {"outer": outer}
        tensors = {f"{module}.{outer}.weight": torch.empty(0, dtype=torch.float64)}
        if self.output == "mean":
            options["d_model"] = artefact.tensors["mean"].shape[0]
            tensors[f"{module}.{outer}.bias"] = artefact.tensors["mean"]
        spec = ModuleSpec(module=module, kind=f"{self.output}_mlp", options=dict(options))
        numbers = sum(tensor.numel() for tensor in tensors.values())
        row = {"module": module, "kind": spec.kind, "rank": None, "parameters": numbers, **artefact.metadata}
        return Replacement(mlp_chain(group, spec), {**chain_tensors(group), **tensors}, group.modules, (row,))


def mlp_parameters(group: Group, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Parameters of the modules of an MLP group, biases included."""
    inside = [s for name, s in shapes.items() if any(name.startswith(m + ".") for m in group.modules)]
    return sum(int(torch.Size(s).numel()) for s in inside)


def parameters_before(material: Material) -> int:
    """The same of an MLP that is about to be replaced, from its weights."""
    prefixes = tuple(f"{module}." for module in material.group.modules)
    return sum(t.numel() for name, t in material.weights.items() if name.startswith(prefixes))
