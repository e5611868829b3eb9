"""What a checkpoint is made of: family, linears, replaced MLPs and attentions, and where each tensor of the file comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress import kinds
from compress.architecture import Architecture
from compress.checkpoint.config import load_config
from compress.checkpoint.shards import Shards
from compress.kinds.contract import Kind, state_dtypes
from compress.plan import ModuleSpec, Plan, read_plan
from compress.reading import json_text
from compress.source.family import Family, describe, refuse
from compress.source.pieces import AttentionSource, MLPSource, Source, Switch
from exporters.torch.linears import Linear, original_linear, place, replaced_linear

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
    mlps: dict[int, tuple[Kind, MLPSource]] = field(default_factory=dict)  # replaced ones, by layer
    attentions: dict[int, tuple[Kind, AttentionSource]] = field(default_factory=dict)  # replaced ones, by layer
    head: Linear | None = None  # None where the embeddings are the output weights
    inner: list[Source] = field(default_factory=list)  # of replaced MLPs and attentions
    sources: list[Source] = field(default_factory=list)

    @property
    def own_attentions(self) -> dict[int, tuple[Kind, AttentionSource]]:
        """Replaced attentions with a class of their own."""
        return {layer: found for layer, found in self.attentions.items() if found[1].expression}

    @property
    def switch(self) -> Switch | None:
        """The other attention function of the stock class, where some layer has one."""
        switching = [kind for kind, form in self.attentions.values() if form.argument is not None]
        # At most one: `_attentions` has refused several.
        return switching[0].torch_switch() if switching else None

    def of(self, *roles: str) -> list[Linear]:
        """The linears of some roles in all layers, where they have one."""
        return [linear for role in roles for linear in self.linears[role] if linear is not None]

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Named tensors of the file, floating ones in `dtype` but for those that are float32 in every dtype."""
        for source in self.sources:
            tensor = self.shards.tensor(self.stored[source.stored])[source.part]
            # Indices keep their dtype.
            if tensor.is_floating_point():
                tensor = tensor.to(dtype if source.cast else torch.float32)
            yield source.name, (tensor.T if source.transposed else tensor).contiguous()
        if self.family.rope and self.family.rope.frequencies is not None:
            yield "frequencies", self.family.rope.frequencies


def read(checkpoint: Path) -> Parts:
    """Raises FileNotFoundError and ValueError for a damaged folder, NotImplementedError for what the file cannot hold."""
    config = load_config(checkpoint)
    family, plan, shards = describe(config), read_plan(checkpoint), Shards(checkpoint)
    row = family.row
    stored = _full_names(shards, row)
    shapes = {name: shards.shapes[key] for name, key in stored.items()}
    parts = Parts(family, plan, _end(checkpoint, config), shards, stored, {role: [] for role in row.roles})
    # What is left of these at the end has no place in the file.
    left = {spec.module: spec for spec in plan.modules}
    # First, since `_layers` asks which linears they go without.
    _attentions(parts, left)
    _layers(parts, left, shapes)
    parts.head = _head(family, left, shapes)
    for module, spec in left.items():
        refuse(True, f"replacement of {module!r} by {spec.kind!r}", _SUPPORTED)
    parts.sources = [*_shared(family), *(parts.head.sources if parts.head else ())]
    parts.sources += [source for linear in parts.of(*parts.linears) for source in linear.sources]
    parts.sources += parts.inner
    # Looked up now, before anything is written.
    if missing := [source.stored for source in parts.sources if source.stored not in stored]:
        raise ValueError(f"{checkpoint} has no tensor {missing[0]!r}, which its config asks for; save or download it again")
    return parts


def _full_names(names: Iterable[str], row: Architecture) -> dict[str, str]:
    """{parameter name in the model: name in the files}.

    They differ where transformers renames the head, and in base models (openai-community/gpt2), saved without the prefix.
    """
    prefix, head, stored_head = (f"{name}." for name in (row.base_prefix, row.head, row.stored_head))
    # Not one name with the prefix: a base model, saved by itself.
    bare = not any(name.startswith(prefix) for name in names)
    full: dict[str, str] = {}
    for name in names:
        if name.startswith((head, stored_head)):
            full[head + name.removeprefix(head).removeprefix(stored_head)] = name
        else:
            full[prefix + name if bare else name] = name
    return full


def _end(checkpoint: Path, config: Any) -> list[int]:
    """Tokens that end a text: those of generation_config.json, else the config's."""
    path = checkpoint / "generation_config.json"
    generation = json_text.read(path) if path.is_file() else {}
    value = generation.get("eos_token_id") if isinstance(generation, dict) else None
    value = config.eos_token_id if value is None else value
    tokens = [] if value is None else value if isinstance(value, list) else [value]
    if odd := [token for token in tokens if type(token) is not int or not -1 <= token < 2**31]:
        raise ValueError(f"{checkpoint}: eos_token_id {str(odd[0])[:100]!r} given; allowed: token ids")
    if len(tokens) > 1000:  # they stand in the source, one by one
        raise ValueError(f"{checkpoint}: {len(tokens)} values of eos_token_id given; allowed: at most 1000")
    return list(dict.fromkeys(tokens))


def _attentions(parts: Parts, left: dict[str, ModuleSpec]) -> None:
    """Fills `attentions`, and takes their specs out of `left`."""
    family = parts.family
    for layer in range(family.layers):
        name = f"{family.row.layer(layer)}.{family.row.attention}"
        if (spec := left.pop(name, None)) is None:
            continue
        kind = kinds.of(spec)
        refuse(kind.replaces != "attention", f"replacement of {spec.module!r} by {spec.kind!r}", _SUPPORTED)
        form = kind.torch_attention(family, layer)
        parts.attentions[layer] = kind, form
        parts.inner += [
            Source(f"layers.{layer}.attention.{new}", f"{spec.module}.{old}", cast=new not in form.float32)
            for new, old in form.tensors.items()
        ]
    # The stock class has room for one other function, and the file for one other class.
    for choose, what in (
        (lambda form: form.argument is not None, "attention functions"),
        (lambda form: form.expression, "classes"),
    ):
        several = sorted({kind.kind for kind, form in parts.attentions.values() if choose(form)})
        refuse(len(several) > 1, f"several {what} in one model: {several}", "one")


def _layers(parts: Parts, left: dict[str, ModuleSpec], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Fills `linears` and `mlps`, and takes the specs of what it has seen out of `left`."""
    family, row = parts.family, parts.family.row
    for layer in range(family.layers):
        *inner, outer = (f"{row.layer(layer)}.{name}" for name in row.mlp)
        # A layer that runs its MLP inline has it replaced where the first of its modules only passes through.
        whole = outer in left and (not inner or (inner[0] in left and kinds.of(left[inner[0]]).passes_through))
        if whole:
            _mlp(parts, left.pop(outer), layer)
            for name in inner:
                if left.pop(name, None) is None:
                    raise ValueError(f"the plan replaces {outer!r} and not {name!r}, a part of it; the files are damaged")
        without = parts.attentions[layer][1].without if layer in parts.attentions else ()
        for role in row.roles:
            name, natural = row.module(layer, role), family.shape(role)
            target = place(family, name)
            if (role in row.mlp_roles and whole) or role in without:
                linear = None
            elif spec := left.pop(name, None):
                linear = replaced_linear(family, spec, target, natural, shapes)
            else:
                linear = original_linear(family, name, target, natural, shapes)
            parts.linears[role].append(linear)


def _mlp(parts: Parts, spec: ModuleSpec, layer: int) -> None:
    """One replaced MLP. Raises NotImplementedError for a kind that keeps the MLP it replaces."""
    kind = kinds.of(spec)
    refuse(kind.replaces != "mlp", f"replacement of {spec.module!r} by {spec.kind!r}", _SUPPORTED)
    refuse(kind.wraps, f"{spec.kind!r}, which keeps the MLP it replaces", "kinds that stand alone")
    form = kind.torch_mlp(layer)
    parts.mlps[layer] = kind, form
    # A kind that stands alone asks nothing of the original, so any module will do.
    names = state_dtypes(kind, nn.Identity())
    pairs = {name: name for name in names} if form.tensors is None else form.tensors
    parts.inner += [Source(f"layers.{layer}.mlp.{new}", f"{spec.module}.{old}", cast=names[old]) for new, old in pairs.items()]


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
        # OPT's first rows belong to no position.
        sources.append(Source("positions.weight", f"{row.embeddings[1]}.weight", part=(slice(family.position_offset, None),)))
    if family.projected:
        decoder = row.embeddings[0].rpartition(".")[0]
        sources += [Source(f"{name}.weight", f"{decoder}.{name}.weight") for name in ("project_in", "project_out")]
    norms = [("norm", row.final[0])] if family.final_norm else []
    for layer in range(family.layers):
        at = row.layer(layer)
        norms += [(f"layers.{layer}.{ours}", f"{at}.{theirs}") for ours, theirs in family.norms]
        if family.qk_norm != "none":
            # transformers' own names of these norms.
            suffix = "layernorm" if family.norm != "RMSNorm" else "norm"
            norms += [(f"layers.{layer}.attention.{x}_norm", f"{at}.{row.attention}.{x}_{suffix}") for x in "qk"]
    kinds = ("weight",) if family.norm == "RMSNorm" else ("weight", "bias") if family.affine_norms else ()
    return [*sources, *(Source(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in norms for kind in kinds)]
