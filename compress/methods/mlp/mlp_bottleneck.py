"""The MLP between two projections: its input and output seen only through their leading principal components.

The projections are folded into the MLP's own linears, which become low-rank ones: the study needs no module of its own, and
what it measures is a model that ships.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from compress.architecture import Architecture
from compress.checkpoint.units import Artefact
from compress.kinds.low_rank_linear import LowRank
from compress.methods.base import Group, Material, Method, Need, Preview, Replacement
from compress.methods.mlp._shared import MLPMethod, mlp_parameters, parameters_before
from compress.numerics.linalg import principal_components
from compress.numerics.statistics import Moments
from compress.plan import ModuleSpec


class MLPBottleneck(MLPMethod):
    """MLP'(x) = P_O(MLP(P_I(x))), P the projection on the top principal components about the mean: the sensitivity study."""

    reference = "SymTorch, section 4.1, figure 4"
    controls = ("pca",)
    examples = ({"inputs": 8, "outputs": 4},)
    whole: ClassVar[Mapping[str, Any] | None] = {"inputs": 32, "outputs": 32}  # of the tiny models' width
    decided_late = frozenset({"inputs", "outputs"})

    inputs: Annotated[int, Field(ge=1)] = Field(32, description="principal components of the input that pass")
    outputs: Annotated[int, Field(ge=1)] = Field(8, description="principal components of the output that pass")

    @classmethod
    def as_control(cls, control: str, of: Method) -> dict[str, Any]:
        """PCA only: the same latents with the MLP itself in between."""
        sees = of.sees()
        return {} if sees is None else {"inputs": sees.inputs, "outputs": sees.outputs}

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        """Joint moments of input and output."""
        return {"moments": Need(group.modules[0], group.modules[-1])}

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        """One row. Raises ValueError for more components than d_model."""
        before = mlp_parameters(group, shapes)
        d_model, d_ff = shapes[f"{architecture.module(group.layer, 'down')}.weight"][:: -1 if architecture.conv1d else 1]
        for name, value in (("inputs", self.inputs), ("outputs", self.outputs)):
            if value > d_model:
                raise ValueError(f"{group.modules[-1]}: {name}: {value} given, at most d_model = {d_model} components exist")
        readers = len(architecture.mlp_roles) - 1
        # Two factors per linear, with a bias on each.
        after = (readers * self.inputs + self.outputs) * (d_model + d_ff) + readers * d_ff + d_model
        return [Preview(group.modules[-1], (d_model, d_model), before, after, f"{self.inputs} in, {self.outputs} out")]

    def fit(self, material: Material) -> Artefact:
        """Artefact: v_in (d, d) as rows, v_out (d, d) as columns, their spectra, every linear with its projection folded in."""
        moments = cast(Moments, material.statistics["moments"])
        # The rows are [x; y], each d_model wide.
        d_model = moments.mean.shape[0] // 2
        mean_in, mean_out = moments.mean[:d_model], moments.mean[d_model:]
        v_in, spectrum_in = principal_components(moments.covariance[:d_model, :d_model])
        v_out, spectrum_out = principal_components(moments.covariance[d_model:, d_model:])
        # All components: how many pass is decided in `replace`, and every choice is the beginning of these.
        tensors = {"spectrum_in": spectrum_in, "spectrum_out": spectrum_out, "v_in": v_in.T.contiguous(), "v_out": v_out}
        for role in material.architecture.mlp_roles:
            weight, bias = material.linear(material.architecture.module(material.group.layer, role))
            offset = torch.zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias
            if role == "down":  # P(W h + b) about the mean: V Vᵀ W h + (V Vᵀ (b − mean) + mean)
                tensors |= {
                    "down.inner": v_out.T @ weight,
                    "down.latent": v_out.T @ (offset - mean_out),
                    "down.offset": mean_out,
                }
            else:  # W(V Vᵀ (x − mean) + mean) + b = (W V)(Vᵀ x) + (W mean + b − (W V) Vᵀ mean)
                tensors |= {
                    f"{role}.outer": weight @ v_in,
                    f"{role}.latent": v_in.T @ mean_in,
                    f"{role}.offset": weight @ mean_in + offset,
                }
        return Artefact(tensors, {"parameters_before": parameters_before(material)})

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        """Every linear in two factors, cut to the components that pass."""
        data = artefact.tensors
        specs: list[ModuleSpec] = []
        tensors: dict[str, Tensor] = {}
        for role in architecture.mlp_roles:
            module = architecture.module(group.layer, role)
            if role == "down":
                rank = self.outputs
                weight, basis = data["v_out"][:, :rank], data["down.inner"][:rank]
                bias = weight @ data["down.latent"][:rank] + data["down.offset"]
            else:
                rank = self.inputs
                weight, basis = data[f"{role}.outer"][:, :rank], data["v_in"][:rank]
                bias = data[f"{role}.offset"] - weight @ data[f"{role}.latent"][:rank]
            kind = LowRank(in_features=basis.shape[1], out_features=weight.shape[0], rank=rank, bias=True)
            specs.append(kind.spec(module))
            tensors |= {f"{module}.weight": weight, f"{module}.basis": basis, f"{module}.bias": bias}
        explained = {
            "explained_variance_in": _explained(data["spectrum_in"], self.inputs),
            "explained_variance_out": _explained(data["spectrum_out"], self.outputs),
        }
        sizes = {"parameters": sum(t.numel() for t in tensors.values()), **artefact.metadata}
        row = {"module": group.modules[-1], "kind": "bottleneck", "rank": [self.inputs, self.outputs], **sizes, **explained}
        return Replacement(tuple(specs), tensors, tuple(s.module for s in specs), (row,))


def _explained(spectrum: Tensor, count: int) -> float:
    return float(spectrum[:count].sum() / spectrum.sum().clamp_min(1e-300))
