"""Attention read from its top position, plus a few averaged dimensions of the values: a head's output is V_top + L R ε."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from compress.architecture import Architecture
from compress.checkpoint.units import Artefact
from compress.kinds.crystallized_attention import Crystallized
from compress.methods.base import Group, Material, Method, Need, Preview, Replacement
from compress.numerics.conventions import damping
from compress.numerics.lapack import eigvalsh
from compress.numerics.linalg import factorize
from compress.numerics.statistics import HeadMoments, Moments

METRIC_DAMPING = 1e-2  # of the mean power: value directions that the output projection hardly reads keep some weight
SPECTRUM_RANKS = (1, 2, 4, 8, 16)


class CrystallizedAttention(Method):
    """o = V_top + L R ε with ε = Σ_j p_j V_j − V_top: only `rank` dimensions of the values are averaged.

    R and L are a basis of each key/value head, fitted to the residuals ε of the calibration text (uncentred second moment)
    and folded into the value and output projections, so that nothing is stored or computed beside them. Query heads that
    share a value head share its basis.
    """

    reference = "NQP-Q, EXP-Q03 (crystallized attention with residual excitations)"
    replaces = "attention"
    decided_late = frozenset({"mode", "rank"})
    saves = "averaged value numbers"
    examples = ({"rank": 3}, {"rank": 2, "importance": "fisher"}, {"mode": "top1"})
    whole: ClassVar[Mapping[str, Any] | None] = {"mode": "full"}
    exempt: ClassVar[Mapping[str, str]] = {
        "plain": "every weight keeps its name and shape: without compress the original attention is loaded, over projections "
        "that compute what the original's do",
        "standalone:gemma2": "the standalone torch file has no crystallized attention with capped scores",
    }

    mode: Literal["top1", "full", "lowrank"] = Field(
        "lowrank", description="top1: V_top alone; full: all of ε, equal to the original; lowrank: `rank` dimensions of ε"
    )
    rank: Annotated[int, Field(ge=1)] = Field(8, description="dimensions of the residual per head, in mode lowrank")
    importance: Literal["none", "output", "fisher"] = Field(
        "none",
        description="none: SVD of the residuals, as published; output: of what the output projection makes of them; "
        "fisher: of what the loss feels of that (one backward pass)",
    )

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        """Moments of the residuals by value head; with `fisher` also those of the loss gradient at the output projection."""
        needs = {"residual": Need(group.modules[0], statistic="residual")}
        if self.importance == "fisher":
            output = architecture.module(group.layer, "o")
            needs[f"gradient:{output}"] = Need(output, statistic="gradient")
        return needs

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        """One row: the weights stay as large as they are, only what is averaged shrinks."""
        module = group.modules[0]
        before = sum(math.prod(s) for name, s in shapes.items() if name.startswith(module + "."))
        rows, columns = _turned(shapes[f"{architecture.module(group.layer, 'o')}.weight"], architecture)
        return [Preview(module, (rows, columns), before, before, self.mode if self.mode != "lowrank" else f"rank {self.rank}")]

    def fit(self, material: Material) -> Artefact:
        """Artefact: into, back (G, C, C), spectrum, residual_spectrum (G, C) of G value heads, and the attention's weights."""
        architecture, layer = material.architecture, material.group.layer
        attention = material.group.modules[0]
        moments = cast(HeadMoments, material.statistics["residual"]).second_moment  # (G, C, C)
        groups, head_dim, _ = moments.shape
        weight, _ = material.linear(architecture.module(layer, "o"))
        heads = weight.shape[1] // head_dim
        # W_o as (d_model, G, heads / G · C): each part holds the columns of the query heads that share one value head.
        bases = [
            _basis(moment, self._metric(material, part, head_dim))
            for moment, part in zip(moments, weight.unflatten(1, (groups, -1)).unbind(1), strict=True)
        ]
        tensors = {
            "into": torch.stack([b[0] for b in bases]),
            "back": torch.stack([b[1] for b in bases]),
            "spectrum": torch.stack([b[2] for b in bases]),
            # Of the residuals as they are, whatever metric chose the basis: this one is for the report.
            "residual_spectrum": eigvalsh(moments).flip(1).clamp_min(0),
        }
        # `replace` reads nothing but the artefact, and folds the basis into these.
        own = {name: value for name, value in material.weights.items() if name.startswith(attention + ".")}
        return Artefact({**tensors, **own}, {"heads": heads, "groups": groups, "head_dim": head_dim})

    def _metric(self, material: Material, weight: Tensor, size: int) -> Tensor | None:
        """What an error of a value head costs, (C, C): W_hᵀ Γ W_h summed over the query heads h that share it; Γ = I for
        "output". weight (d_model, heads · C) holds those heads' columns of the output projection.
        """
        if self.importance == "none":
            return None
        felt = weight
        if self.importance == "fisher":
            output = material.architecture.module(material.group.layer, "o")
            felt = cast(Moments, material.statistics[f"gradient:{output}"]).second_moment @ weight
        by_head, felt = (m.unflatten(1, (-1, size)).movedim(1, 0) for m in (weight, felt))  # (heads, d_model, C)
        metric = (by_head.transpose(1, 2) @ felt).sum(0)
        metric.diagonal().add_(damping(metric, METRIC_DAMPING))
        return metric

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        """The attention in the new coordinates. Raises ValueError for a rank above the head's size."""
        attention = group.modules[0]
        size: int = artefact.metadata["head_dim"]
        if self.mode == "lowrank" and self.rank > size:
            raise ValueError(f"{attention}: rank {self.rank} given; a head has {size} dimensions: 1 to {size}, or mode full")
        rank = {"top1": 0, "full": size}.get(self.mode, self.rank)
        tensors = {k: v.to(torch.float64) for k, v in artefact.tensors.items() if k.startswith(attention + ".")}
        # The top value alone, or everything: neither needs a basis, and the weights stay as they are.
        if 0 < rank < size:
            tensors |= _folded(group, artefact, architecture)
        kind = Crystallized(rank=rank, head_dim=size)
        count = sum(t.numel() for t in tensors.values())
        spectrum = artefact.tensors["spectrum"]
        kept = float((spectrum[:, :rank].sum(1) / spectrum.sum(1).clamp_min(1e-300)).mean())
        row: dict[str, Any] = {
            "module": attention,
            "kind": kind.kind,
            "rank": rank,
            "parameters_before": count,
            "parameters": count,
            "averaged": {"before": artefact.metadata["groups"] * size, "after": artefact.metadata["groups"] * rank},
            "relative_error": max(1 - kept, 0.0) ** 0.5,
            "residual": describe_spectrum(artefact.tensors["residual_spectrum"]),
        }
        # The attention's tensors all go and come: those that are not in new coordinates, as they were.
        return Replacement((kind.spec(attention),), tensors, (attention,), (row,))

    def layer_cost(
        self, made: Replacement, layer: int, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture
    ) -> tuple[int, int]:
        """Numbers of the values that are averaged per cached token."""
        (row,) = made.report
        return row["averaged"]["before"], row["averaged"]["after"]


def describe_spectrum(spectrum: Tensor) -> dict[str, Any]:
    """Of eigenvalues (heads, C): each head's variance at r = 1 2 4 8 16, and how many dimensions hold 90 %."""
    share = spectrum.cumsum(1) / spectrum.sum(1, keepdim=True).clamp_min(1e-300)
    ranks = [r for r in SPECTRUM_RANKS if r <= share.shape[1]]
    return {
        "variance": {str(r): [round(float(v), 4) for v in share[:, r - 1]] for r in ranks},
        "dimensions_for_90": [int((row < 0.9).sum()) + 1 for row in share],
    }


def _basis(moment: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(into, back, spectrum): into (C, C) takes a value to coordinates of which the first r are the best r to average, back is
    its inverse.
    """
    # The identity in place of a weight: L R ε ≈ ε, for ε with this moment and errors that cost by this metric.
    result = factorize(torch.eye(len(moment), dtype=torch.float64), moment, metric)
    return result.right, result.left, result.spectrum


def _folded(group: Group, artefact: Artefact, architecture: Architecture) -> dict[str, Tensor]:
    """The value and output projections in the new coordinates: W_v → A W_v, W_o → W_o A⁻¹ for every head."""
    into, back = (artefact.tensors[name].to(torch.float64) for name in ("into", "back"))
    heads, groups, size = (artefact.metadata[name] for name in ("heads", "groups", "head_dim"))
    out: dict[str, Tensor] = {}
    role = "v" if "v" in architecture.roles else "qkv"
    value, rows = architecture.module(group.layer, role), value_rows(architecture, heads, groups, size)
    for name in (f"{value}.weight", f"{value}.bias"):
        if name in artefact.tensors:
            tensor = artefact.tensors[name].to(torch.float64)
            tensor = (tensor.T if architecture.conv1d and tensor.ndim == 2 else tensor).clone()
            part = tensor[rows].unflatten(0, (groups, size))  # (G, C, …)
            # Weight and bias alike: a value that is computed from them comes out as A v.
            tensor[rows] = torch.einsum("gab,gb...->ga...", into, part).flatten(0, 1)
            out[name] = tensor.T.contiguous() if architecture.conv1d and tensor.ndim == 2 else tensor
    name = f"{architecture.module(group.layer, 'o')}.weight"
    tensor = artefact.tensors[name].to(torch.float64)
    # (d_model, G, heads / G, C)
    weight = (tensor.T if architecture.conv1d else tensor).unflatten(1, (groups, heads // groups, size))
    turned = torch.einsum("dghb,gba->dgha", weight, back).flatten(1)
    out[name] = (turned.T if architecture.conv1d else turned).contiguous()
    return out


def value_rows(architecture: Architecture, heads: int, groups: int, size: int) -> Tensor:
    """The rows of the value projection, or of the fused one, that hold the values, head by head: (groups · size,)."""
    if "v" in architecture.roles:
        return torch.arange(groups * size)
    # Fused by head: q, k, v of head 0, then of head 1, …
    if architecture.qkv_by_head:
        return torch.arange(3 * heads * size).view(heads, 3, size)[:, 2].flatten()
    # Fused by block: all of q, all of k, all of v.
    return torch.arange((heads + groups) * size, (heads + 2 * groups) * size)


def _turned(shape: tuple[int, ...], architecture: Architecture) -> tuple[int, int]:
    return (shape[1], shape[0]) if architecture.conv1d else (shape[0], shape[1])
