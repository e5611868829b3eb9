"""What the low-rank linear methods share: the artefact is the decomposition at every rank that could ship.

A group is one matrix, or several that read the same basis: their weights are stacked and decomposed as one.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from compress.architecture import Architecture
from compress.checkpoint.units import Artefact
from compress.kinds.low_rank_linear import LowRank
from compress.kinds.pivoted_linear import Pivoted
from compress.kinds.shared_linear import Shared
from compress.methods.base import Group, Material, Method, Need, Preview, Ranks, Replacement
from compress.methods.linear._rank_rule import RankRule
from compress.numerics.conventions import balanced, damping
from compress.numerics.linalg import Decomposition, factorize, pivoted
from compress.numerics.rank import Form, allocate, break_even, parameters, rank_at
from compress.numerics.statistics import Moments
from compress.plan import ModuleSpec

FEW_TOKENS_DAMPING = 1e-2  # of the mean input power
GRADIENT_DAMPING = 1e-2  # of the mean gradient power: directions the calibration loss never felt keep some weight


class LowRankMethod(Method):
    """Options that every low-rank method has."""

    replaces = "linear"
    decided_late = frozenset({"rank"})
    has_ranks = True
    examples = ({"rank": {"keep": 0.6}}, {"rank": {"budget": 0.6}, "importance": "fisher", "form": "pivoted"})
    whole: ClassVar[Mapping[str, Any] | None] = {"rank": {"keep": 1.0}, "form": "pivoted"}

    rank: RankRule = Field(
        description="rank rule: an integer, {keep: f}, {budget: f}, {explained_variance: f} or {table: file.json}"
    )
    form: Form = Field(
        "plain", description="plain: r·(d_out+d_in) numbers; pivoted: r·(d_out+d_in−r), exact, no break-even rank"
    )
    importance: Literal["none", "fisher"] = Field(
        "none", description="fisher: weight output errors by the second moment of the loss gradient (one backward pass)"
    )

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        """Moments of what each module reads; with `fisher` also those of the loss gradient at its output."""
        needs = {f"input:{module}": Need(module) for module in group.modules}
        if self.importance == "fisher":
            needs |= {f"gradient:{module}": Need(module, statistic="gradient") for module in group.modules}
        return needs

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
        """G of `factorize`, (d_out, d_out), damped, block diagonal over the group's modules; None for the identity."""
        if self.importance == "none":
            return None
        # Block diagonal: gradients at the outputs of different modules are measured one by one.
        blocks = [cast(Moments, material.statistics[f"gradient:{module}"]).second_moment for module in material.group.modules]
        metric = torch.block_diag(*blocks)
        metric.diagonal().add_(damping(metric, GRADIENT_DAMPING))
        return metric

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        """One row for the stacked matrix. Raises ValueError for a rank that cannot be, or is above break-even in plain form."""
        each = [_oriented(shapes[f"{module}.weight"], architecture) for module in group.modules]
        # Stacked, the outputs add up; the input is one.
        d_out, d_in = sum(rows for rows, _ in each), each[0][1]
        name = group.modules[0] + (f" + {len(each) - 1}" if len(each) > 1 else "")
        rank = self.rank.known_before_fit(group.modules[0], d_out, d_in, self.form)
        after = None if rank is None else parameters(rank, d_out, d_in, self.form)
        # A null in a table leaves the matrix dense, and that is known before the fit.
        listed = self.rank.table is not None or self.rank.ranks is not None
        note = f"rank {rank}" if rank is not None else "dense" if listed else "rank from the spectra"
        after = d_out * d_in if rank is None and listed else after
        return [Preview(name, (d_out, d_in), d_out * d_in, after, note)]

    def fit(self, material: Material) -> Artefact:
        """Artefact: left (d_out, n), right (n, d_in), spectrum; output_mean (d_out,), latent_mean (n,) for a bias."""
        each = [material.linear(module) for module in material.group.modules]
        weight = torch.cat([w for w, _ in each]) if len(each) > 1 else each[0][0]
        d_out, d_in = weight.shape
        metric, weighing = self.input_metric(material), self.output_metric(material)
        added, note = (0.0, {}) if metric is None else _damping(material, d_in)
        # What the loss does not feel gets unweighted factors, for a zero metric has no inverse, and any rank costs nothing.
        felt = weighing is None or float(weighing.diagonal().sum()) > 0
        result = factorize(self.target(weight), metric, weighing if felt else None, added)
        if not felt:
            result = dataclasses.replace(result, spectrum=torch.zeros_like(result.spectrum))
        # Above break-even the plain form never ships (`RankRule.choose`), and need not be stored.
        most = result.max_rank if self.form == "pivoted" else min(result.max_rank, math.floor(break_even(d_out, d_in)))
        left, right = result.truncate(most)
        # Factors in float32 are half the file; the spectrum decides ranks and stays in float64.
        tensors = {"left": left.float().contiguous(), "right": right.float().contiguous(), "spectrum": result.spectrum}
        mean = self.mean_input(material)
        biased = [b is not None for _, b in each]
        if mean is not None or any(biased):
            tensors["output_mean"] = torch.cat([torch.zeros(len(w), dtype=torch.float64) if b is None else b for w, b in each])
        # The mean output is kept: W x + b ≈ L R (x − mean) + (W mean + b). L R mean goes in `replace`, at the rank chosen.
        if mean is not None:
            tensors["output_mean"] += weight @ mean
            tensors["latent_mean"] = right @ mean
            biased = [True] * len(each)  # the mean gives every module a bias, whether it had one or not
        return Artefact(tensors, {"shape": [d_out, d_in], "rows": [len(w) for w, _ in each], "biased": biased, **note})

    def evenly(self) -> Method | None:
        """With one budget: the same fraction of every matrix."""
        return self.model_copy(update={"rank": rule}) if (rule := self.rank.uniform()) else None

    def settled(self) -> Method:
        """With the ranks of a table."""
        return self.model_copy(update={"rank": self.rank.settled()})

    def decide(self, groups: Sequence[Group], artefacts: Sequence[Artefact]) -> list[Method]:
        """With one budget: ranks by the spectra of all units together."""
        if not self.rank.joint:
            return [self] * len(artefacts)
        spectra = {group.name: artefact.tensors["spectrum"] for group, artefact in zip(groups, artefacts, strict=True)}
        shapes = {group.name: _shape(artefact) for group, artefact in zip(groups, artefacts, strict=True)}
        ranks = allocate(spectra, shapes, self.form, self.rank.budget or 1.0)
        return [self._at(group, ranks[group.name]) for group in groups]

    def _at(self, group: Group, rank: int | None) -> Method:
        rule = RankRule.model_validate({"ranks": dict.fromkeys(group.modules, rank)})
        return self.model_copy(update={"rank": rule})

    def ranks(self, group: Group, artefact: Artefact) -> Ranks:
        """As SFSD-LLM searches: rank 1 and each tenth of break-even."""
        (d_out, d_in), spectrum = _shape(artefact), artefact.tensors["spectrum"]

        def stored(rank: int | None) -> int:
            return d_out * d_in if rank is None else parameters(rank, d_out, d_in, self.form)

        def fraction(keep: float) -> int:
            return rank_at(keep, d_out, d_in, self.form)

        tried = {1, *(fraction(tenths / 10) for tenths in range(1, 11))}
        useful = sorted(rank for rank in tried if rank <= len(spectrum) and stored(rank) < stored(None))
        # A joint budget chooses for all units at once; for one alone nothing is chosen.
        chosen = None if self.rank.joint else self.rank.choose(group.modules[0], d_out, d_in, self.form, spectrum)
        at = partial(self._at, group)
        return Ranks(tuple(useful), chosen, stored, at, fraction, (self.importance, self.form))

    def budgeted(self, share: float) -> Method | None:
        """Without the loss weight the spectra of different modules have no common scale."""
        if self.importance == "none":
            return None
        return self.model_copy(update={"rank": RankRule.model_validate({"budget": share})})

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        """The factors at the rank the rule chooses, in the wanted form; no specs where it leaves the group dense."""
        d_out, d_in = artefact.metadata["shape"]
        spectrum = artefact.tensors["spectrum"]
        # By the first module: a group has one rank.
        rank = self.rank.choose(group.modules[0], d_out, d_in, self.form, spectrum)
        row = {"module": " + ".join(group.modules), "parameters_before": d_out * d_in}
        if rank is None:
            return Replacement(
                (), {}, (), ({**row, "kind": "dense", "rank": None, "parameters": d_out * d_in, "relative_error": 0.0},)
            )
        left, right = (artefact.tensors[k].to(torch.float64) for k in ("left", "right"))
        # A spectrum may go on beyond the factors, as the error they leave.
        rank = min(rank, left.shape[1])
        factors, note = _factors(left[:, :rank], right[:rank], self.form)
        bias = artefact.tensors.get("output_mean")
        if bias is not None and (latent := artefact.tensors.get("latent_mean")) is not None:
            # L_r R_r mean, of the components that stay.
            bias = bias - left[:, :rank] @ latent[:rank]
        specs, tensors = members(group.modules, artefact.metadata, factors, bias)
        row |= {
            "kind": specs[0].kind,
            "rank": rank,
            # What is stored may be plain where pivots were asked for, but ill-conditioned.
            "parameters": parameters(rank, d_out, d_in, "pivoted" if factors.order is not None else "plain"),
            "relative_error": Decomposition(left, right, spectrum).relative_error(rank),
            **note,
            **{key: artefact.metadata[key] for key in ("note",) if key in artefact.metadata},
        }
        return Replacement(tuple(specs), tensors, group.modules, (row,))


def _damping(material: Material, d_in: int) -> tuple[float, dict[str, str]]:
    """What is added to the input metric, and a note for the report, where fewer tokens than inputs made it."""
    if (count := merged_inputs(material).count) >= d_in:
        return 0.0, {}
    note = f"{count} calibration tokens for {d_in} inputs: the covariance is singular and was damped; calibrate on more"
    warnings.warn(note, stacklevel=2)  # without the module's name: said once for each size; the report names the modules
    return FEW_TOKENS_DAMPING, {"note": note}


@dataclass(frozen=True)
class Factors:
    """A product in storage form: plain weight (d_out, r), or pivoted weight (d_out − r, r) with `order`; see PivotedLinear."""

    weight: Tensor
    basis: Tensor
    order: Tensor | None


def members(
    modules: Sequence[str], metadata: Mapping[str, Any], factors: Factors, bias: Tensor | None
) -> tuple[list[ModuleSpec], dict[str, Tensor]]:
    """Specs and tensors of the modules whose stacked weight `factors` is; several share the basis that the first one stores."""
    rank, d_in = factors.basis.shape
    specs, tensors = [], {}
    start = 0
    for position, (module, rows, biased) in enumerate(zip(modules, metadata["rows"], metadata["biased"], strict=True)):
        part = slice(start, start + rows)
        start += rows
        own: dict[str, Tensor] = {"weight": factors.weight[part]} if factors.order is None else _own_rows(factors, part)
        has_bias = biased and bias is not None
        if has_bias and bias is not None:
            own["bias"] = bias[part]
        # The first stores the basis; the others name it as their owner.
        if position == 0:
            own["basis"] = factors.basis
        sizes = {"in_features": d_in, "out_features": rows, "rank": rank, "bias": has_bias}
        if len(modules) > 1:
            kind = Shared(**sizes, stored_rows=len(own["weight"]), owner=None if position == 0 else modules[0])
        else:
            kind = LowRank(**sizes) if factors.order is None else Pivoted(**sizes)
        specs.append(kind.spec(module))
        tensors |= {f"{module}.{name}": value for name, value in own.items()}
    return specs, tensors


def _own_rows(factors: Factors, part: slice) -> dict[str, Tensor]:
    """One module's share of a pivoted stack: the coefficients of its rows that are no pivots, and its order over [pivots;
    those].
    """
    assert factors.order is not None
    rank = factors.basis.shape[0]
    order = factors.order[part]
    stored = order[order >= rank]  # rows of the stack's weight this module reads, as rank + index
    # A number below the rank is a pivot, which every module has in its basis; the others are rows that are stored.
    place = {int(index): rank + i for i, index in enumerate(stored)}
    local = torch.tensor([int(i) if int(i) < rank else place[int(i)] for i in order], dtype=torch.int32)
    weight = factors.weight[stored - rank]
    # No pivot among its rows: they stand in their own order already.
    return {"weight": weight} if len(stored) == len(order) else {"weight": weight, "order": local}


def _factors(left: Tensor, right: Tensor, form: Form) -> tuple[Factors, dict[str, object]]:
    """One product in the wanted form, or in plain form where the pivots are ill-conditioned; and a note for the report."""
    if form == "pivoted":
        pivots = pivoted(left, right)
        if pivots is not None:
            return Factors(pivots.weight, pivots.basis, pivots.order), {"growth": pivots.growth}
    note: dict[str, object] = {"note": "pivots ill-conditioned: plain form"} if form == "pivoted" else {}
    return Factors(*balanced(left, right), None), note


def merged_inputs(material: Material) -> Moments:
    """The input moments of the group: one accumulator where its modules read the same activation, else all layers' together."""
    distinct: list[Moments] = []
    for module in material.group.modules:
        # By identity: modules that read one activation are given one accumulator.
        moments = cast(Moments, material.statistics[f"input:{module}"])
        if all(moments is not other for other in distinct):
            distinct.append(moments)
    if len(distinct) == 1:
        return distinct[0]
    # Into a new one, since the parts may be read by other units.
    total = Moments(distinct[0].mean.shape[0])
    for moments in distinct:
        total.merge(moments)
    return total


def _shape(artefact: Artefact) -> tuple[int, int]:
    """(d_out, d_in) of what was decomposed."""
    d_out, d_in = artefact.metadata["shape"]
    return d_out, d_in


def _oriented(shape: tuple[int, ...], architecture: Architecture) -> tuple[int, int]:
    """(d_out, d_in) of a stored weight."""
    first, second = shape
    return (second, first) if architecture.conv1d else (first, second)
