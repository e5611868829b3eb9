"""What the low-rank linear methods share: the unit is one matrix, its artefact the decomposition at every rank that could ship."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from compress.architecture import Architecture
from compress.methods.base import Artefact, Group, Material, Method, Need, Preview, Replacement
from compress.numerics.linalg import Decomposition, factorize, pivoted
from compress.numerics.rank import Form, RankRule, break_even, parameters
from compress.numerics.statistics import Moments
from compress.plan import ModuleSpec

GRADIENT_DAMPING = 1e-2  # of the mean gradient power: directions the calibration loss never felt keep some weight


class LowRankMethod(Method):
    """Options that every low-rank method has."""

    replaces = "linear"
    decided_late = frozenset({"rank"})

    rank: RankRule = Field(description="rank rule: an integer, {keep: f}, {budget: f}, {explained_variance: f} or {table: file.json}")
    form: Form = Field("plain", description="plain: r·(d_out+d_in) numbers; pivoted: r·(d_out+d_in−r), exact, no break-even rank")
    importance: Literal["none", "fisher"] = Field(
        "none", description="fisher: weight output errors by the second moment of the loss gradient (one backward pass)"
    )

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        needs = {"input": Need(group.modules[0])}
        return needs | ({"gradient": Need(group.modules[0], statistic="gradient")} if self.importance == "fisher" else {})

    def target(self, weight: Tensor) -> Tensor:
        """What is decomposed, of W (d_out, d_in)."""
        return weight

    def input_metric(self, material: Material) -> Tensor | None:
        """C of `factorize`, (d_in, d_in), or None for the identity."""
        raise NotImplementedError

    def mean_input(self, material: Material) -> Tensor | None:
        """The input mean (d_in,) whose image the bias restores exactly; None for the uncentred methods."""
        return None

    def output_metric(self, material: Material) -> Tensor | None:
        """G of `factorize`, (d_out, d_out), damped; None for the identity."""
        if self.importance == "none":
            return None
        moment = cast(Moments, material.statistics["gradient"]).second_moment
        floor = GRADIENT_DAMPING * float(moment.diagonal().mean())
        return moment + floor * torch.eye(moment.shape[0], dtype=moment.dtype)

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        module = group.modules[0]
        d_out, d_in = _oriented(shapes[f"{module}.weight"], architecture)
        rank = self.rank.known_before_fit(module, d_out, d_in, self.form)
        after = None if rank is None else parameters(rank, d_out, d_in, self.form)
        listed = self.rank.table is not None or self.rank.ranks is not None
        note = f"rank {rank}" if rank is not None else "dense" if listed else "rank from the spectra"
        after = d_out * d_in if rank is None and listed else after
        return [Preview(module, (d_out, d_in), d_out * d_in, after, note)]

    def fit(self, material: Material) -> Artefact:
        module = material.group.modules[0]
        weight, bias = material.linear(module)
        result = factorize(self.target(weight), self.input_metric(material), self.output_metric(material))
        d_out, d_in = weight.shape
        most = result.max_rank if self.form == "pivoted" else min(result.max_rank, math.floor(break_even(d_out, d_in)))
        left, right = result.truncate(most)
        tensors = {"left": left.float().contiguous(), "right": right.float().contiguous(), "spectrum": result.spectrum}
        mean = self.mean_input(material)
        offset = torch.zeros(d_out, dtype=torch.float64) if bias is None else bias
        if mean is not None:
            tensors["output_mean"] = weight @ mean + offset
            tensors["latent_mean"] = right @ mean
        elif bias is not None:
            tensors["output_mean"] = offset
        return Artefact(tensors, {"shape": [d_out, d_in]})

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        module = group.modules[0]
        d_out, d_in = artefact.metadata["shape"]
        spectrum = artefact.tensors["spectrum"]
        rank = self.rank.choose(module, d_out, d_in, self.form, spectrum)
        row = {"module": module, "parameters_before": d_out * d_in}
        if rank is None:
            return Replacement((), {}, (), ({**row, "kind": "dense", "rank": None, "parameters": d_out * d_in, "relative_error": 0.0},))
        left, right = (artefact.tensors[k].to(torch.float64) for k in ("left", "right"))
        kind, tensors, note = _factors(left[:, :rank], right[:rank], self.form)
        if (mean := artefact.tensors.get("output_mean")) is not None:
            latent = artefact.tensors.get("latent_mean")
            tensors["bias"] = mean if latent is None else mean - left[:, :rank] @ latent[:rank]
        options = {"in_features": d_in, "out_features": d_out, "rank": rank, "bias": "bias" in tensors}
        error = Decomposition(left, right, spectrum).relative_error(rank)
        stored = parameters(rank, d_out, d_in, "pivoted" if kind == "pivoted_linear" else "plain")
        row |= {"kind": kind, "rank": rank, "parameters": stored, "relative_error": error, **note}
        return Replacement(
            (ModuleSpec(module=module, kind=kind, options=options),),
            {f"{module}.{name}": value for name, value in tensors.items()},
            (module,),
            (row,),
        )


def _factors(left: Tensor, right: Tensor, form: Form) -> tuple[str, dict[str, Tensor], dict[str, object]]:
    """(kind, tensors, report note) of one product in the wanted form, or in plain form where the pivots are ill-conditioned."""
    if form == "pivoted":
        pivots = pivoted(left, right)
        if pivots is not None:
            tensors = {"weight": pivots.weight, "basis": pivots.basis, "order": pivots.order}
            return "pivoted_linear", tensors, {"growth": pivots.growth}
    # Balanced scales: both factors get the root of each component's size, which 16-bit storage rounds best.
    scale = (right.norm(dim=1) / left.norm(dim=0).clamp_min(1e-300)).clamp_min(1e-300).sqrt()
    note = {"note": "pivots ill-conditioned: plain form"} if form == "pivoted" else {}
    return "low_rank_linear", {"weight": left * scale, "basis": right / scale[:, None]}, note


def _oriented(shape: tuple[int, ...], architecture: Architecture) -> tuple[int, int]:
    """(d_out, d_in) of a stored weight."""
    first, second = shape
    return (second, first) if architecture.conv1d else (first, second)
