"""An MLP as a low-rank affine map plus closed-form expressions for what the map leaves, solved together under the loss.

    y = ȳ + L R (x − x̄) + D (f(z) − f̄),   z = B (x − x̄) clamped to its calibrated range

Affine alone is the control that published surrogates lose to: here it is what the expressions start from, so on the
calibration data they can only add (Velu & Reinsel's reduced-rank regression with extra regressors, `joint_regression`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from compress.architecture import Architecture
from compress.checkpoint.units import Artefact
from compress.kinds.symbolic_mlp import Symbolic
from compress.methods.base import Group, Material, Need, Preview, Replacement, Sees
from compress.methods.mlp._equal_cost import equal_channels, equal_rank, surrogate_multiply_adds
from compress.methods.mlp._neurons import neurons
from compress.methods.mlp._searched import Searched
from compress.methods.mlp._shared import (
    affine_needs,
    affine_replacement,
    chain_tensors,
    d_model,
    mlp_chain,
    mlp_parameters,
    output_metric,
    parameters_before,
)
from compress.numerics import subspace
from compress.numerics.conventions import balanced, signed
from compress.numerics.linalg import largest_first, symmetric_sqrt
from compress.numerics.reduced_rank import Fit, Joint, extend, measured, solve
from compress.numerics.sample import Sample
from compress.numerics.statistics import Moments
from compress.regression.features import evaluate, renumbered, varying
from compress.regression.front import Candidate, Front
from compress.regression.options import HELD_OUT, EngineOptions
from compress.regression.regress import available, regress_each
from compress.symbolic.expression import join, to_text

_JACOBIAN_ROWS = 2048  # tokens whose Jacobians are averaged: the directions settle long before


class Latents(BaseModel):
    """What the expressions read and how many there are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: subspace.Kind | Literal["neurons"] = Field(
        default="gradient",
        description="pca: largest variance; regression: best linear predictors; gradient: where the MLP's gradient varies; "
        "neurons: what the MLP's own neurons read, those that the affine map misses most, each in its own closed form",
    )
    inputs: PositiveInt = Field(
        default=32, description="directions of the MLP's input that the expressions read; of neurons, what they need"
    )
    outputs: PositiveInt = Field(default=8, description="expressions, along the output directions that cost the loss most")
    per_output: bool = Field(default=False, description="gradient: an equal share of the directions for each output")


class ResidualSurrogate(Searched):
    """MLP(x) ≈ affine map of low rank + D f(B x): expressions for the loss-weighted residual of the map."""

    reference = "SymTorch, section 4.1, on the residual of a reduced-rank regression; active subspaces (Constantine 2015)"

    examples = (
        {"latents": {"inputs": 4, "outputs": 2}, "affine": 2, "samples": 500},
        {"latents": {"kind": "neurons", "outputs": 5}, "affine": 2, "samples": 500},
    )

    latents: Latents = Field(
        Latents(), description="{kind: pca | regression | gradient, inputs: n, outputs: m, per_output: bool}"
    )
    affine: NonNegativeInt = Field(16, description="rank of the affine map; 0 leaves the mean")
    importance: Literal["none", "fisher"] = Field(
        "fisher", description="fisher: weight output errors by the second moment of the loss gradient (one backward pass)"
    )
    engine: EngineOptions = Field(
        default_factory=lambda: EngineOptions(name="sparse"), description="what searches: {name: sparse | operon | pysr, …}"
    )

    def sees(self) -> Sees:
        """Latents, rank and metric, so that the controls can be given the same."""
        return Sees(self.latents.inputs, self.latents.outputs, self.affine, self.importance)

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        """What the affine map needs, and a sample of rows [x, y] for the regression."""
        sample = Need(group.modules[0], group.modules[-1], "sample", self.samples)
        return {**affine_needs(group, self.importance), "sample": sample}

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        """One row. Raises ValueError for sizes beyond d_model, and for too few samples."""
        width, latents = d_model(group, shapes, architecture), self.latents
        if latents.kind == "neurons":
            return self._preview_neurons(group, shapes, architecture, width)
        sizes = {"latents.inputs": latents.inputs, "latents.outputs": latents.outputs, "affine": self.affine}
        for name, value in sizes.items():
            if value > width:
                raise ValueError(f"{group.modules[-1]}: {name}: {value} given, at most d_model = {width} directions exist")
        self.check_samples(latents.inputs)
        available(self.engine)
        # Basis, offset and range of each input; a column for each expression, two factors of the map, and the bias.
        after = latents.inputs * (width + 3) + (latents.outputs + 1 + 2 * self.affine) * width
        note = f"{latents.inputs} in, {latents.outputs} expressions by {self.engine.name}, affine of rank {self.affine}"
        return [Preview(group.modules[-1], (width, width), mlp_parameters(group, shapes), after, note)]

    def _preview_neurons(
        self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture, width: int
    ) -> Sequence[Preview]:
        d_ff = shapes[f"{architecture.module(group.layer, 'down')}.weight"][0 if architecture.conv1d else 1]
        # A gated neuron reads two directions, one of the gate and one of up.
        count, each = self.latents.outputs, 2 if {"gate", "gate_up"} & set(architecture.mlp_roles) else 1
        for name, value, most in (("latents.outputs", count, d_ff), ("affine", self.affine, width)):
            if value > most:
                raise ValueError(f"{group.modules[-1]}: {name}: {value} given, at most {most} exist")
        after = each * count * (width + 3) + (count + 1 + 2 * self.affine) * width
        note = f"{count} of {d_ff} neurons, affine of rank {self.affine}"
        return [Preview(group.modules[-1], (width, width), mlp_parameters(group, shapes), after, note)]

    def fit(self, material: Material) -> Artefact:
        """Artefact: basis (I, d), offset, low, high (I,), metric (d, d), fronts, moments of [x; f; y], all and held out."""
        moments, sample = cast(Moments, material.statistics["moments"]), cast(Sample, material.statistics["sample"])
        width, values = moments.mean.shape[0] // 2, sample.values
        # The sample is in the order of the text, so its end is other text.
        cut = len(values) - int(len(values) * HELD_OUT)
        x, y = values[:, :width], values[:, width:]
        metric = output_metric(material)
        # The map alone, on all calibration rows: what it leaves is for the expressions.
        base = solve(Joint(moments.mean, moments.covariance, width, 0), metric, self.affine)
        if self.latents.kind == "neurons":
            basis, offset, fronts = neurons(material, x, metric, self.latents.outputs)
            z = x @ basis.T + offset
        else:
            directions = _output_directions(moments, base, metric, self.latents.outputs)
            basis = self._basis(material, moments, directions, x[:cut])
            # z = B (x − x̄): mean 0 and variance 1 over the calibration rows.
            offset = -basis @ moments.mean[:width]
            z = x @ basis.T + offset
            # T e: the residual e = y − (L R x + b) along the directions that cost the loss most.
            targets = (y - base.bias - x @ base.right.T @ base.left.T) @ directions.T
            # Unit variance on the fitted rows; a target that does not vary is left as it is.
            scale = targets[:cut].std(dim=0, correction=0)
            targets = targets / torch.where(scale > 0, scale, torch.ones_like(scale))
            held = (z[cut:], targets[cut:])
            fronts = regress_each(z[:cut], targets[:cut], self.engine, material.seed, held, clamp=self.clamp, log=material.log)
        # The range of the fitted rows is where the expressions are certified, and what the runtime clamps to.
        low, high = z[:cut].amin(dim=0), z[:cut].amax(dim=0)
        # Every candidate of every front: any choice can then be solved for in `replace`, without the rows.
        features = evaluate([fronts[k].candidates[i] for k, i in varying(fronts)], z.clamp(low, high) if self.clamp else z)
        joint, held = extend(moments, x, y, features), measured(x[cut:], y[cut:], features[cut:])
        tensors = {
            "basis": basis,
            "offset": offset,
            "low": low,
            "high": high,
            "metric": metric,
            **{f"{name}.mean": part.mean for name, part in (("joint", joint), ("held", held))},
            **{f"{name}.covariance": part.covariance for name, part in (("joint", joint), ("held", held))},
        }
        about = {"fronts": [front.to_json() for front in fronts], "parameters_before": parameters_before(material)}
        return Artefact(tensors, {**about, "rows": len(values)})

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        """The chosen expressions with the map solved anew beside them, or the map alone. Raises ValueError as `choice` does."""
        data, about = artefact.tensors, artefact.metadata
        fronts = [Front.from_json(front) for front in about["fronts"]]
        # In the order in which `fit` evaluated them, which the fronts alone decide.
        every = varying(fronts)
        width = data["basis"].shape[1]
        joint, held = (Joint(data[f"{name}.mean"], data[f"{name}.covariance"], width, len(every)) for name in ("joint", "held"))
        picked = [(k, self.choice(front, group.layer, k)) for k, front in enumerate(fronts)]
        # What reads an input is a feature; a constant would only repeat the bias.
        index = [every.index(place) for place in picked if place in every]
        chosen = [fronts[k].candidates[i] for k, i in (every[j] for j in index)]
        notes = [f"output {k}: {note}" for k, front in enumerate(fronts) for note in front.notes]
        notes += [f"output {k}: constant, left out" for k, i in picked if (k, i) not in every]
        metric = data["metric"]
        # The map that the expressions must beat, and the mean that errors are shares of.
        control, mean = (solve(joint.keep([]), metric, rank) for rank in (self.affine, 0))
        fit = solve(joint.keep(index), metric, self.affine)

        def share(of: Joint, features: list[int], made: Fit) -> float:  # of the loss-weighted output variance, if any
            total = of.keep([]).error(mean, metric)
            return of.keep(features).error(made, metric) / total if total > 0 else 0.0

        row = {
            "parameters_before": about["parameters_before"],
            "error": share(joint, index, fit),
            "error_held_out": share(held, index, fit),
            "affine_error": share(joint, [], control),
            "affine_error_held_out": share(held, [], control),
        }
        # Expressions that do not help on held-out rows are not worth their operations: the map alone ships.
        if not chosen or row["error_held_out"] >= row["affine_error_held_out"]:
            why = "no expression" if not chosen else "the expressions do not beat the affine map on held-out tokens"
            return affine_replacement(group, control, {**row, "notes": [*notes, f"{why}: affine map used"]}, architecture)
        return self._surrogate(group, data, chosen, fit, {**row, "notes": notes}, architecture)

    def _surrogate(
        self,
        group: Group,
        data: Mapping[str, Tensor],
        chosen: Sequence[Candidate],
        fit: Fit,
        row: Mapping[str, Any],
        architecture: Architecture,
    ) -> Replacement:
        """The Plan's part: latents that no chosen expression reads are left out."""
        trees, constants = join([(c.tree, c.constants) for c in chosen])
        trees, read = renumbered(trees)
        width, module, outer = len(fit.bias), group.modules[-1], architecture.mlp_outer
        sizes = {"d_model": width, "inputs": len(read), "outputs": len(chosen), "affine": self.affine}
        kind = Symbolic(outer=outer, **sizes, constants=len(constants), clamp=self.clamp, expressions=trees)
        operations = len(kind.program.instructions)
        cost = surrogate_multiply_adds(width, len(read), len(chosen), self.affine, operations)
        left, right = balanced(fit.left, fit.right)
        tensors = {
            # One projection for both: the first rows for the expressions, the others for the map.
            "basis": torch.cat([data["basis"][read], right]),
            **{name: data[name][read].float() for name in ("offset", "low", "high")},  # float32 whatever the model's dtype
            "program.constants": torch.tensor(constants, dtype=torch.float32),
            # D, then L: columns for the expressions, then for the latents of the map.
            f"{outer}.weight": torch.cat([fit.direct, left], dim=1),
            f"{outer}.bias": fit.bias,
        }
        report = {
            "module": module,
            "kind": kind.kind,
            "rank": [len(read), len(chosen), self.affine],
            "parameters": sum(t.numel() for t in tensors.values()),
            **row,
            "r2_train": [1 - c.train_loss for c in chosen],
            "r2_held_out": [1 - cast(float, c.held_out_loss) for c in chosen],
            "complexity": [c.complexity for c in chosen],
            "source": [c.source for c in chosen],
            "operations": operations,
            "multiply_adds": cost,
            "equal_cost": {"rank": equal_rank(cost, width), "channels": equal_channels(cost, width, architecture)},
            "expressions": [to_text(t, constants, [f"z{i}" for i in range(len(read))]) for t in trees],
        }
        specs = mlp_chain(group, kind)
        named = {f"{module}.{name}": tensor for name, tensor in tensors.items()}
        return Replacement(specs, {**chain_tensors(group), **named}, group.modules, (report,))

    def _basis(self, material: Material, moments: Moments, directions: Tensor, x: Tensor) -> Tensor:
        """Directions of the input that the expressions read, (inputs, d_model), latents of unit variance."""
        width, latents = x.shape[1], self.latents
        covariance = moments.covariance[:width, :width]
        if latents.inputs > (moving := subspace.moving(covariance)):
            raise ValueError(
                f"latents.inputs: {latents.inputs} given, but the calibrated inputs vary in {moving} directions only; lower it"
            )
        if latents.kind == "pca":
            return subspace.principal(covariance, latents.inputs)
        if latents.kind == "regression":
            cross = directions @ moments.covariance[width:, :width]
            return subspace.regression(covariance, cross, latents.inputs)
        rows = x[torch.linspace(0, len(x) - 1, min(len(x), _JACOBIAN_ROWS)).long()]  # spread over the text
        jacobians = _jacobians(_mlp(material), rows, directions)  # of the whole MLP: the map's own are constant
        return subspace.gradient(covariance, jacobians, latents.inputs, per_output=latents.per_output)


def _output_directions(moments: Moments, base: Fit, metric: Tensor, count: int) -> Tensor:
    """Rows T (count, d_model): the targets T e, of unit weight in the loss, that hold most of the map's residual e."""
    width = len(base.bias)
    # e = [−L R, I] [x; y] but for a constant, so its covariance follows from the joint one.
    rows = torch.cat([-base.left @ base.right, torch.eye(width, dtype=torch.float64)], dim=1)
    root, _ = symmetric_sqrt(metric)
    # The leading directions V of G^½ e; as targets, T = Vᵀ G^½.
    vectors, _ = largest_first(root @ rows @ moments.covariance @ rows.T @ root)
    return signed(vectors[:, :count]).T @ root


def _mlp(material: Material) -> nn.Sequential:
    """The original MLP of the resident layer: one module, or the chain that the layer runs inline."""
    prefix = material.architecture.layer(material.group.layer) + "."
    return nn.Sequential(*(material.layer.get_submodule(name.removeprefix(prefix)) for name in material.group.modules))


def _jacobians(mlp: nn.Module, x: Tensor, directions: Tensor) -> Tensor:
    """Gradients of directions @ mlp(x) at rows x (n, d) → (n, outputs, d), float64; rows do not depend on each other."""
    with torch.enable_grad():
        # The layer computes in float32; what is made of it is float64 again.
        inputs = x.float().requires_grad_(True)
        there = inputs.to(next(mlp.parameters(), inputs))  # where the layer is, in its dtype
        latents = mlp(there).cpu().double() @ directions.T
        # The sum over rows has each row's own gradient, as no row depends on another.
        parts = [torch.autograd.grad(latents[:, k].sum(), inputs, retain_graph=True)[0] for k in range(len(directions))]
    return torch.stack(parts, dim=1).to(torch.float64)
