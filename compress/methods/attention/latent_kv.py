"""One latent per token in the cache instead of keys and values: [W_k; W_v] ≈ L R, and R x is what is cached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from compress.architecture import Architecture
from compress.checkpoint.units import Artefact
from compress.kinds.latent_attention import SUPPORTED, Latent
from compress.methods.attention._rotary import rotary_frequencies
from compress.methods.base import Group, Material, Method, Need, Preview, Replacement
from compress.numerics.conventions import balanced, damping
from compress.numerics.linalg import factorize
from compress.numerics.statistics import Moments

GRADIENT_DAMPING = 1e-2  # of the mean gradient power: directions the calibration loss never felt keep some weight
FEW_TOKENS_DAMPING = 1e-2  # of the mean input power, where fewer tokens than inputs made the covariance


class LatentKV(Method):
    """The cache holds R x_t, `cache` times as many numbers as keys and values; both are read through the rows of L.

    Joint latents serve keys and values alike: at equal width no separate ones approximate better. Biases are kept, rotary
    positions are applied to the rebuilt keys, values are never rebuilt for a new token.
    """

    reference = "Palu (ICLR 2025); MLA (DeepSeek-V2); shared K/V basis as in edwinhere/surgery"
    replaces = "attention"
    decided_late = frozenset({"cache", "allocation"})
    examples = (
        {"cache": 0.5},
        {"cache": 0.5, "share": "separate", "metric": "uncentred"},
        {"cache": 0.5, "importance": "fisher", "allocation": "global"},
    )
    whole: ClassVar[Mapping[str, Any] | None] = {"cache": 1.0, "allocation": "uniform"}

    cache: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="fraction of the cache's numbers per token that remain")
    share: Literal["joint", "separate", "head"] = Field(
        "joint",
        description="joint: latents for keys and values together; separate: some for keys, some for values; head: some for the "
        "keys and some for the values of every head, as many for each (the naive form)",
    )
    metric: Literal["centred", "uncentred", "weight"] = Field(
        "centred", description="of the inputs. centred: their covariance; uncentred: whitening; weight: no data"
    )
    importance: Literal["none", "fisher"] = Field(
        "none", description="fisher: weight errors of keys and values by the second moment of the loss gradient"
    )
    allocation: Literal["uniform", "global"] = Field(
        "uniform", description="global: widths of all layers from one budget, by their spectra; needs importance: fisher"
    )

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        """Moments of what k and v read; with `fisher` the loss gradient's at both. Raises ValueError as `preview` does."""
        _refuse(architecture)
        modules = {role: architecture.module(group.layer, role) for role in ("k", "v")}
        needs = {"input": Need(modules["k"])} if self.metric != "weight" else {}
        if self.importance == "fisher":
            needs |= {f"gradient:{module}": Need(module, statistic="gradient") for module in modules.values()}
        return needs

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        """One row. Raises ValueError for an unknown architecture, and for a global allocation without `fisher`."""
        _refuse(architecture)
        if self.allocation == "global" and self.importance != "fisher":
            raise ValueError("latent_kv: allocation global compares spectra of layers, which needs importance: fisher")
        attention = group.modules[0]
        before = sum(math.prod(s) for name, s in shapes.items() if name.startswith(attention + "."))
        rows, d_model = shapes[f"{architecture.module(group.layer, 'k')}.weight"]
        width = _width(self.cache, 2 * rows)
        if self.allocation == "global":
            return [Preview(attention, (2 * rows, d_model), before, None, "width from the spectra")]
        return [Preview(attention, (2 * rows, d_model), before, None, f"{width} of {2 * rows} numbers per token")]

    def fit(self, material: Material) -> Artefact:
        """Artefact: left (rows of k and v, n), right (n, d_model), spectrum, latent_mean (n,), bias, frequencies, other
        weights.
        """
        group, architecture = material.group, material.architecture
        (k, k_bias), (v, v_bias) = (material.linear(architecture.module(group.layer, role)) for role in ("k", "v"))
        attention: Any = material.layer.get_submodule(architecture.attention)
        size: int = attention.head_dim
        # (2 · kv_heads · head_dim, d_model), the keys first.
        weight = torch.cat([k, v])
        bias = torch.cat([torch.zeros(len(w), dtype=torch.float64) if b is None else b for w, b in ((k, k_bias), (v, v_bias))])
        # How many neighbouring rows share latents: all of them, the keys' and the values', or one head's.
        block = {"joint": len(weight), "separate": len(k), "head": size}[self.share]
        moments = cast("Moments | None", material.statistics.get("input"))
        metric = None if moments is None else moments.covariance if self.metric == "centred" else moments.second_moment
        # Fewer tokens than inputs leave the covariance singular.
        added = FEW_TOKENS_DAMPING if moments is not None and moments.count < weight.shape[1] else 0.0
        output = self._output_metric(material)
        lefts, rights, spectra = [], [], []
        for rows in torch.arange(len(weight)).split(block):
            result = factorize(weight[rows], metric, None if output is None else output[rows][:, rows], added)
            # A block's latents serve no other block: there its columns are zero.
            left = torch.zeros(len(weight), result.max_rank, dtype=torch.float64)
            left[rows] = result.left
            lefts.append(left)
            rights.append(result.right)
            spectra.append(result.spectrum)
        left, right = torch.cat(lefts, dim=1), torch.cat(rights)
        if self.metric == "centred" and moments is not None:
            # Centred: W x + b ≈ L R (x − mean) + (W mean + b). L R mean goes in `replace`, where its components are chosen.
            bias = bias + weight @ moments.mean
        mean = moments.mean if self.metric == "centred" and moments is not None else torch.zeros(weight.shape[1]).double()
        frequencies, scale = rotary_frequencies(attention)
        own = {n: t for n, t in material.weights.items() if n.startswith(group.modules[0] + ".")}
        before = sum(t.numel() for t in own.values())
        # These two are replaced; queries, output projection and norms stay.
        for role in ("k", "v"):
            own = {n: t for n, t in own.items() if not n.startswith(architecture.module(group.layer, role) + ".")}
        tensors = {"left": left, "right": right, "spectrum": torch.cat(spectra), "bias": bias, "latent_mean": right @ mean}
        # Components by block; within one they fall.
        counts = [len(s) for s in spectra]
        metadata = {"head_dim": size, "kv_heads": len(k) // size, "counts": counts, "scale": scale, "parameters": before}
        return Artefact({**tensors, "frequencies": frequencies, **own}, metadata)

    def _output_metric(self, material: Material) -> Tensor | None:
        """G of `factorize` for [k; v], damped, block diagonal; None for the identity."""
        if self.importance == "none":
            return None
        blocks = [cast(Moments, m).second_moment for key, m in material.statistics.items() if key.startswith("gradient:")]
        metric = torch.block_diag(*blocks)
        metric.diagonal().add_(damping(metric, GRADIENT_DAMPING))
        return metric

    def decide(self, groups: Sequence[Group], artefacts: Sequence[Artefact]) -> list[Method]:
        """With one budget: the widths that keep the largest components of all layers together."""
        if self.allocation == "uniform":
            return [self] * len(artefacts)
        spectra = [a.tensors["spectrum"] for a in artefacts]
        full = [2 * a.metadata["kv_heads"] * a.metadata["head_dim"] for a in artefacts]
        budget = _width(self.cache, sum(full))
        # One threshold for all layers, since loss-weighted spectra are on one scale: the largest stay, wherever they are.
        threshold = torch.cat(spectra).sort(descending=True).values[:budget][-1]
        widths = [max(2, min(int((s >= threshold).sum()), f)) for s, f in zip(spectra, full, strict=True)]
        return [self.model_copy(update={"cache": w / f, "allocation": "uniform"}) for w, f in zip(widths, full, strict=True)]

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        """The components of the chosen width: basis (width, d_model), and by head the rows of keys and of values."""
        attention, data, meta = group.modules[0], artefact.tensors, artefact.metadata
        heads = (meta["kv_heads"], meta["head_dim"])
        rows = heads[0] * heads[1]
        width = min(_width(self.cache, 2 * rows), len(data["spectrum"]))
        chosen = self._chosen(data["spectrum"], meta["counts"], width)
        left, right = data["left"].double()[:, chosen], data["right"].double()[chosen]
        bias = data["bias"].double() - left @ data["latent_mean"].double()[chosen]
        left, right = balanced(left, right)
        # With separate latents a column that is zero in all key rows belongs to the values.
        keys = sum(int((left[:rows, i] != 0).any()) for i in range(width))
        values = width if self.share == "joint" else width - keys
        keys = width if self.share == "joint" else keys
        own = {n: t.to(torch.float64) for n, t in data.items() if n.startswith(attention + ".")}
        tensors = own | {
            f"{attention}.basis": right,
            # float32 whatever the model's dtype.
            f"{attention}.frequencies": data["frequencies"].float(),
            # (kv_heads, head_dim, latents): keys read the first latents, values the last.
            f"{architecture.module(group.layer, 'k')}.weight": left[:rows, :keys].unflatten(0, heads).contiguous(),
            f"{architecture.module(group.layer, 'k')}.bias": bias[:rows].view(heads),
            f"{architecture.module(group.layer, 'v')}.weight": left[rows:, width - values :].unflatten(0, heads).contiguous(),
            f"{architecture.module(group.layer, 'v')}.bias": bias[rows:].view(heads),
        }
        sizes = {"d_model": right.shape[1], "rank": width, "key_rank": keys, "value_rank": values}
        kind = Latent(**sizes, head_dim=meta["head_dim"], kv_heads=meta["kv_heads"], scale=meta["scale"])
        spectrum = data["spectrum"]
        row = {
            "module": attention,
            "kind": kind.kind,
            "rank": width,
            "key_rank": keys,
            "value_rank": values,
            "parameters_before": meta["parameters"],
            "parameters": sum(t.numel() for t in tensors.values()),
            "cache_numbers": {"before": 2 * rows, "after": width},
            "relative_error": float((1 - spectrum[chosen].sum() / spectrum.sum().clamp_min(1e-300)).clamp_min(0)) ** 0.5,
        }
        return Replacement((kind.spec(attention),), tensors, (attention,), (row,))

    def _chosen(self, spectrum: Tensor, counts: Sequence[int], width: int) -> Tensor:
        """Which components make the latent, keys' before values': the largest, or as many of each head."""
        parts = spectrum.split(list(counts))
        starts = [sum(counts[:i]) for i in range(len(counts))]
        if self.share == "head":
            # As many for each block; what is left over goes to the first ones.
            each = [width // len(parts) + (i < width % len(parts)) for i in range(len(parts))]
        else:
            # As many for the keys as the largest components hold, at least one for either.
            first = min(width - 1, max(1, int((torch.argsort(spectrum, descending=True)[:width] < counts[0]).sum())))
            each = [first, width - first] if self.share == "separate" else [width]
        return torch.cat([torch.arange(s, s + n) for s, n in zip(starts, each, strict=True)])


def _width(fraction: float, numbers: int) -> int:
    """Numbers per token that remain, at least 2: one for the keys, one for the values."""
    return max(2, math.floor(fraction * numbers + 1e-9))


def _refuse(architecture: Architecture) -> None:
    if architecture.model_type not in SUPPORTED:
        raise ValueError(
            f"latent_kv: {architecture.model_type!r} given; there is a latent attention for {', '.join(SUPPORTED)}. "
            "shared_basis makes K and V low-rank on any architecture, without a smaller cache"
        )
