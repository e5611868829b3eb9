"""What a checkpoint is made of: its family, every linear, every replaced MLP, and where each tensor of the file comes from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.architecture import Architecture
from compress.checkpoint.shards import Shards
from compress.loading.quantizer import checked_options
from compress.plan import ModuleSpec, Plan
from compress.source.family import Family, describe, refuse
from exporters.torch.latent import latent_sources
from exporters.torch.linears import Linear, Source, original_linear, place, replaced_linear
from exporters.torch.surrogates import Surrogate, surrogate

_SUPPORTED = "linears, MLPs and attentions of decoder layers, the output projection"


@dataclass
class Parts:
    """A checkpoint taken apart."""

    family: Family
    plan: Plan
    end: list[int]  # tokens that end a text
    shards: Shards
    stored: dict[str, str]  # full parameter name → its name in the shards
    linears: dict[str, list[Linear | None]]  # role → per layer, None where the MLP is replaced
    surrogates: dict[int, Surrogate] = field(default_factory=dict)  # by layer
    latents: dict[int, ModuleSpec] = field(default_factory=dict)  # attention with a cache of latents, by layer
    head: Linear | None = None  # None where the embeddings are the output weights
    sources: list[Source] = field(default_factory=list)

    def of(self, *roles: str) -> list[Linear]:
        return [linear for role in roles for linear in self.linears[role] if linear is not None]

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Named tensors of the file, floating ones in `dtype` but for those that are float32 in every dtype."""
        for source in self.sources:
            tensor = self.shards.tensor(self.stored[source.stored])[source.part]
            if tensor.is_floating_point():
                tensor = tensor.to(dtype if source.cast else torch.float32)
            yield source.name, (tensor.T if source.transposed else tensor).contiguous()
        if self.family.rope and self.family.rope.frequencies is not None:
            yield "frequencies", self.family.rope.frequencies


def read(checkpoint: Path) -> Parts:
    """Raises FileNotFoundError and ValueError for a damaged folder, NotImplementedError for what the file cannot hold."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint)
    family, plan, shards = describe(config), _plan(config), Shards(checkpoint)
    row = family.row
    stored = _full_names(shards, row)
    shapes = {name: shards.shapes[key] for name, key in stored.items()}
    parts = Parts(family, plan, _end(checkpoint, config), shards, stored, {role: [] for role in row.roles})
    for spec in plan.modules:
        checked_options(spec)  # they become source
    left = {spec.module: spec for spec in plan.modules}
    _attentions(parts, left)
    family = parts.family
    _layers(parts, left, shapes)
    parts.head = _head(family, left, shapes)
    for module, spec in left.items():
        refuse(True, f"replacement of {module!r} by {spec.kind!r}", _SUPPORTED)
    parts.sources = [*_shared(family), *(parts.head.sources if parts.head else ())]
    parts.sources += [source for linear in parts.of(*parts.linears) for source in linear.sources]
    parts.sources += [source for item in parts.surrogates.values() for source in item.sources]
    parts.sources += [source for layer, spec in parts.latents.items() for source in latent_sources(spec, layer)]
    if missing := [source.stored for source in parts.sources if source.stored not in stored]:
        raise ValueError(f"{checkpoint} has no tensor {missing[0]!r}, which its config asks for; save or download it again")
    return parts


def _full_names(names: Iterable[str], row: Architecture) -> dict[str, str]:
    """{parameter name in the model: name in the files}.

    They differ where transformers renames the head, and in base models (openai-community/gpt2), saved without the prefix.
    """
    prefix, head, stored_head = (f"{name}." for name in (row.base_prefix, row.head, row.stored_head))
    bare = not any(name.startswith(prefix) for name in names)
    full: dict[str, str] = {}
    for name in names:
        if name.startswith((head, stored_head)):
            full[head + name.removeprefix(head).removeprefix(stored_head)] = name
        else:
            full[prefix + name if bare else name] = name
    return full


def _plan(config: Any) -> Plan:
    data = getattr(config, "quantization_config", None)
    data = data if isinstance(data, dict) else data.to_dict() if data is not None else {}
    method = data.get("quant_method", "compress")
    refuse(method != "compress", f"quantization {method!r}", "compressed checkpoints and plain ones")
    return Plan.model_validate({key: data[key] for key in ("format_version", "modules") if key in data})


def _end(checkpoint: Path, config: Any) -> list[int]:
    """Tokens that end a text: those of generation_config.json, else the config's."""
    path = checkpoint / "generation_config.json"
    value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    value = config.eos_token_id if value is None else value
    return [] if value is None else [int(v) for v in (value if isinstance(value, list) else [value])]


def _attentions(parts: Parts, left: dict[str, ModuleSpec]) -> None:
    """Fills `latents` and the family's `averaged`, and takes the specs of replaced attentions out of `left`."""
    family = parts.family
    averaged: list[int | None] = []
    for layer in range(family.layers):
        spec = left.pop(f"{family.row.layer(layer)}.{family.row.attention}", None)
        kind = None if spec is None else spec.kind
        averaged.append(None)
        if spec is not None and kind == "crystallized_attention":
            refuse(family.score_cap, "crystallized attention with capped scores", "it without a cap")
            averaged[layer] = int(str(spec.options["rank"]))
        elif spec is not None and kind == "latent_attention":
            parts.latents[layer] = spec
        elif spec is not None:
            refuse(True, f"replacement of {spec.module!r} by {kind!r}", _SUPPORTED)
    parts.family = dataclasses.replace(family, averaged=tuple(averaged))


def _layers(parts: Parts, left: dict[str, ModuleSpec], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Fills `linears` and `surrogates`, and takes the specs of what it has seen out of `left`."""
    family, row = parts.family, parts.family.row
    for layer in range(family.layers):
        *inner, outer = (f"{row.layer(layer)}.{name}" for name in row.mlp)
        # A layer that runs its MLP inline has it replaced where the first of its modules only passes through.
        whole = outer in left and (not inner or (inner[0] in left and left[inner[0]].kind == "pass_through"))
        if whole:
            parts.surrogates[layer] = surrogate(left.pop(outer), f"layers.{layer}.mlp", layer)
            for name in inner:
                left.pop(name)
        for role in row.roles:
            name, natural = row.module(layer, role), family.shape(role)
            target = place(family, name)
            if (role in row.mlp_roles and whole) or (role in ("k", "v") and layer in parts.latents):
                linear = None
            elif spec := left.pop(name, None):
                linear = replaced_linear(family, spec, target, natural, shapes)
            else:
                linear = original_linear(family, name, target, natural, shapes)
            parts.linears[role].append(linear)


def _head(family: Family, left: dict[str, ModuleSpec], shapes: Mapping[str, tuple[int, ...]]) -> Linear | None:
    """The output projection; None where the embeddings serve."""
    name = family.row.head
    natural = (family.embedding, family.vocabulary)
    if spec := left.pop(name, None):
        return replaced_linear(family, spec, "head", natural, shapes)
    return None if family.tied else original_linear(family, name, "head", natural, shapes)


def _shared(family: Family) -> list[Source]:
    """Embeddings, norms and OPT's projections."""
    row = family.row
    sources = [Source("embed.weight", f"{row.embeddings[0]}.weight")]
    if family.learned_positions:
        sources.append(Source("positions.weight", f"{row.embeddings[1]}.weight", part=(slice(family.position_offset, None),)))
    if family.projected:
        decoder = row.embeddings[0].rpartition(".")[0]
        sources += [Source(f"{name}.weight", f"{decoder}.{name}.weight") for name in ("project_in", "project_out")]
    norms = [("norm", row.final[0])] if family.final_norm else []
    for layer in range(family.layers):
        at = row.layer(layer)
        norms += [(f"layers.{layer}.{ours}", f"{at}.{theirs}") for ours, theirs in family.norms]
        if family.qk_norm != "none":
            suffix = "layernorm" if family.norm != "RMSNorm" else "norm"
            norms += [(f"layers.{layer}.attention.{x}_norm", f"{at}.{row.attention}.{x}_{suffix}") for x in "qk"]
    kinds = ("weight",) if family.norm == "RMSNorm" else ("weight", "bias") if family.affine_norms else ()
    return [*sources, *(Source(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in norms for kind in kinds)]
