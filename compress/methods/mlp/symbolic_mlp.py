"""An MLP as closed-form expressions between two principal-component projections, the published form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from compress.architecture import Architecture
from compress.checkpoint.units import Artefact
from compress.kinds.symbolic_mlp import Symbolic
from compress.methods.base import Group, Material, Need, Preview, Replacement, Sees
from compress.methods.mlp._searched import Searched
from compress.methods.mlp._shared import chain_tensors, mlp_chain, mlp_parameters, parameters_before
from compress.numerics.conventions import signed
from compress.numerics.lapack import least_squares
from compress.numerics.linalg import principal_components
from compress.numerics.sample import Sample
from compress.numerics.statistics import Moments
from compress.regression.front import Front
from compress.regression.options import HELD_OUT, EngineOptions
from compress.regression.regress import available, regress_each
from compress.symbolic.expression import join, to_text

_NEGLIGIBLE = 1e-10  # of the largest variance: a direction that calibration never moved along


class Latents(BaseModel):
    """How many numbers go in and out of the expressions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: PositiveInt = Field(default=32, description="principal components of the MLP's input that the expressions read")
    outputs: PositiveInt = Field(default=8, description="principal components of its output, one expression each")


class SymbolicSurrogate(Searched):
    """MLP(x) ≈ P_O⁻¹(f(P_I(x))): f_k one expression per output latent, found by symbolic regression on sampled tokens."""

    reference = "SymTorch, section 4.1 and table 1; PCA + PySR of astroautomata/LLM_PCA"

    examples = ({"latents": {"inputs": 4, "outputs": 2}, "samples": 500, "engine": {"name": "sparse"}},)

    latents: Latents = Field(
        Latents(), description="{inputs: principal components read, outputs: principal components written}"
    )
    samples: int = Field(6000, ge=10, description="tokens sampled for the regression; the last fifth, other text, is held out")
    engine: EngineOptions = Field(default_factory=EngineOptions, description="what searches: {name: operon | sparse | pysr, …}")

    def sees(self) -> Sees:
        """The latents, so that the controls can be given the same."""
        return Sees(self.latents.inputs, self.latents.outputs)

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        """Joint moments of input and output, and a sample of rows [x, y]."""
        first, last = group.modules[0], group.modules[-1]
        return {"moments": Need(first, last), "sample": Need(first, last, "sample", self.samples)}

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        """One row. Raises ValueError for latents beyond d_model, and for too few samples."""
        d_model = shapes[f"{architecture.module(group.layer, 'down')}.weight"][1 if architecture.conv1d else 0]
        inputs, outputs = self.latents.inputs, self.latents.outputs
        for name, value in (("inputs", inputs), ("outputs", outputs)):
            if value > d_model:
                raise ValueError(
                    f"{group.modules[-1]}: latents.{name}: {value} given, at most d_model = {d_model} components exist"
                )
        self.check_samples(inputs)
        available(self.engine)
        after = inputs * (d_model + 3) + (outputs + 1) * d_model
        note = f"{inputs} in, {outputs} expressions by {self.engine.name}; their constants not counted"
        return [Preview(group.modules[-1], (d_model, d_model), mlp_parameters(group, shapes), after, note)]

    def fit(self, material: Material) -> Artefact:
        """Artefact: basis (I, d), offset, low, high (I,), weight (d, O), bias (d,), one front per output."""
        moments, sample = cast(Moments, material.statistics["moments"]), cast(Sample, material.statistics["sample"])
        d_model = moments.mean.shape[0] // 2
        values = sample.values
        # The sample is in the order of the text, so its end is other text.
        cut = len(values) - int(len(values) * HELD_OUT)
        reader = _Projection.of(moments, slice(None, d_model), self.latents.inputs, "inputs")
        writer = _Projection.of(moments, slice(d_model, None), self.latents.outputs, "outputs")
        # Standardised on the rows that are fitted; the scales live in the projections, so they cost nothing when it runs.
        z, z_mean, z_scale = _standardise(reader.latents(values[:, :d_model]), cut)
        y, y_mean, y_scale = _standardise(writer.latents(values[:, d_model:]), cut)
        held = (z[cut:], y[cut:])
        fronts = regress_each(z[:cut], y[:cut], self.engine, material.seed, held, clamp=self.clamp, log=material.log)
        tensors = {
            # One affine map of x for both: z = ((x − mean) P − z_mean) / z_scale.
            "basis": (reader.components / z_scale).T.contiguous(),
            "offset": -(reader.mean @ reader.components + z_mean) / z_scale,
            "low": z[:cut].amin(dim=0),
            "high": z[:cut].amax(dim=0),
            # And back: y = mean + P (y_scale · outputs + y_mean).
            "weight": writer.components * y_scale,
            "bias": writer.mean + writer.components @ y_mean,
        }
        metadata = {
            "fronts": [front.to_json() for front in fronts],
            "affine_r2": _affine_r2(z.numpy(), y.numpy(), cut),
            "variances_out": (writer.variances / writer.total).tolist(),
            "explained_variance_in": float(reader.variances.sum() / reader.total),
            "explained_variance_out": float(writer.variances.sum() / writer.total),
            "parameters_before": parameters_before(material),
            "rows": len(values),
        }
        return Artefact(tensors, metadata)

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        """The chosen expressions between the two projections. Raises ValueError as `choice` does."""
        data, about = artefact.tensors, artefact.metadata
        fronts = [Front.from_json(front) for front in about["fronts"]]
        chosen = [front.candidates[self.choice(front, group.layer, k)] for k, front in enumerate(fronts)]
        trees, constants = join([(c.tree, c.constants) for c in chosen])
        (inputs, d_model), outputs = data["basis"].shape, len(trees)
        module, outer = group.modules[-1], architecture.mlp_outer
        sizes = {"d_model": d_model, "inputs": inputs, "outputs": outputs, "affine": 0, "constants": len(constants)}
        kind = Symbolic(outer=outer, **sizes, clamp=self.clamp, expressions=trees)
        tensors = {
            "basis": data["basis"],
            **{name: data[name].float() for name in ("offset", "low", "high")},  # float32 whatever the model's dtype
            "program.constants": torch.tensor(constants, dtype=torch.float32),
            f"{outer}.weight": data["weight"],
            f"{outer}.bias": data["bias"],
        }
        held_out = [1 - cast(float, c.held_out_loss) for c in chosen]
        row = {
            "module": module,
            "kind": kind.kind,
            "rank": [inputs, outputs],
            "parameters_before": about["parameters_before"],
            "parameters": sum(t.numel() for t in tensors.values()),
            "explained_variance_in": about["explained_variance_in"],
            "explained_variance_out": about["explained_variance_out"],
            "explained_variance": float(np.dot(about["variances_out"], held_out)),  # of the MLP's output, by the surrogate
            "r2_train": [1 - c.train_loss for c in chosen],
            "r2_held_out": held_out,
            "affine_r2": about["affine_r2"],
            "complexity": [c.complexity for c in chosen],
            "source": [c.source for c in chosen],
            "operations": len(kind.program.instructions),
            "expressions": [to_text(c.tree, c.constants, [f"z{i}" for i in range(inputs)]) for c in chosen],
            "notes": [f"output {k}: {note}" for k, front in enumerate(fronts) for note in front.notes],
        }
        specs = mlp_chain(group, kind)
        named = {f"{module}.{name}": tensor for name, tensor in tensors.items()}
        return Replacement(specs, {**chain_tensors(group), **named}, group.modules, (row,))


class _Projection:
    """Leading principal components of one half of the joint rows: mean (d,), components (d, k), variances (k,), total."""

    def __init__(self, mean: Tensor, components: Tensor, variances: Tensor, total: float) -> None:
        self.mean, self.components, self.variances, self.total = mean, components, variances, total

    @classmethod
    def of(cls, moments: Moments, part: slice, count: int, name: str) -> _Projection:
        """Of that half of the joint moments. Raises ValueError where it varies in fewer than `count` directions."""
        components, variances = principal_components(moments.covariance[part, part])
        moving = int((variances > _NEGLIGIBLE * variances[0]).sum())
        if count > moving:
            raise ValueError(
                f"latents.{name}: {count} given, but the calibrated MLP {name} vary in {moving} directions only; lower it"
            )
        return cls(moments.mean[part], signed(components)[:, :count], variances[:count], float(variances.sum()))

    def latents(self, rows: Tensor) -> Tensor:
        """rows (n, d) → (n, k)"""
        return (rows - self.mean) @ self.components


def _standardise(latents: Tensor, cut: int) -> tuple[Tensor, Tensor, Tensor]:
    """(latents with mean 0 and variance 1 over the first `cut` rows, mean, scale)."""
    mean, scale = latents[:cut].mean(dim=0), latents[:cut].std(dim=0, correction=0)
    # A latent that does not vary keeps its scale.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (latents - mean) / scale, mean, scale


def _affine_r2(z: np.ndarray, y: np.ndarray, cut: int) -> list[float]:
    """Held-out R² of least squares through the same latents, the control of every expression."""
    design = np.column_stack([np.ones(len(z)), z])
    weights = least_squares(design[:cut], y[:cut])
    error = ((y[cut:] - design[cut:] @ weights) ** 2).mean(axis=0)
    return (1 - error / y[cut:].var(axis=0).clip(1e-300)).tolist()
