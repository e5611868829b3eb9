"""The text of the standalone file: every piece in the order a reader wants it, and no import that is not used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

from compress import __version__
from compress.nn import KINDS
from compress.nn.attention import crystallize
from compress.source.family import Family, refuse
from compress.source.inline import import_block, inline
from compress.source.text import WIDTH, fit
from exporters.torch import blocks
from exporters.torch.latent import latent_class, latent_expression
from exporters.torch.linears import Linear, cell, fixed, keywords, maker_source, usual_bias
from exporters.torch.model import block_class, layer_table, model_class
from exporters.torch.parts import Parts
from exporters.torch.runtime import IMPORTS, RUNTIME
from exporters.torch.surrogates import symbolic_classes

_HEAD = '''\
"""A {model_type} language model of {layers} layers in one file. It needs torch, and the weights in model.safetensors beside it.

    python model.py --prompt "Once upon a time" --tokens 64
    python model.py --ids 1,2,3 --temperature 0.8 --seed 1
    python model.py --pt2  # torch.export of the prefill, to model.pt2

{summary}
"""

from __future__ import annotations

{imports}

'''
_SWITCHES = {
    "window": "window: int | None = None",
    "rotary": "rotary: bool = True",
    "scale": "scale: float",
    "averaged": "averaged: int | None = None",
}


def source(parts: Parts) -> str:
    """The whole file."""
    family = parts.family
    roles = {
        "Attention": [role for role in family.row.roles if role not in family.row.mlp_roles],
        "MLP": list(family.row.mlp_roles),
    }
    # Roles that are replaced anywhere are arguments of their class; the others are written into it.
    columns = {name: [role for role in group if not fixed(parts.of(role))] for name, group in roles.items()}
    tabled = parts.of(*columns["Attention"], *columns["MLP"])
    usual = usual_bias(tabled)
    built = {
        name: {role: _built(family, parts.of(role), role, role in columns[name]) for role in group if parts.of(role)}
        for name, group in roles.items()
    }
    makers = {name: [f"{role}: Maker" for role in group] for name, group in columns.items()}
    inlined = inline(_copied(parts, tabled))
    symbolic = {layer: item.symbolic for layer, item in parts.surrogates.items() if item.symbolic}
    pieces = [
        blocks.norm_class(family),
        inlined.text,
        maker_source(tabled, usual),
        blocks.rotary_functions(family),
        blocks.mask_function(family),
        *([] if len(parts.latents) == family.layers else [_attention(family, built, makers)]),
        *([_latent(parts)] if parts.latents else []),
        blocks.mlp_class(family, built["MLP"], makers["MLP"]) if built["MLP"] else "",
        *dict.fromkeys(item.code for item in parts.surrogates.values() if item.code),
        *symbolic_classes(symbolic),
        block_class(family, "nn.Module" if parts.latents else "Attention"),
        layer_table(_rows(parts, columns, usual), columns),
        model_class(family, _head(parts.head), links=any(spec.options.get("owner") is not None for spec in parts.plan.modules)),
        RUNTIME,
    ]
    body = fit("\n\n\n".join(piece for piece in pieces if piece)) + "\n"
    body = f"{blocks.constants(family, parts.end, body)}\n\n{_aliases(family, tabled)}\n\n\n{body}"
    return (
        _HEAD.format(
            model_type=family.row.model_type,
            layers=family.layers,
            summary="\n".join(fill(line, WIDTH) for line in (_summary(parts), _letters(family))),
            imports=_imports(body, [*IMPORTS, *inlined.imports]),
        )
        + body
    )


def _attention(family: Family, built: Mapping[str, Mapping[str, str]], makers: Mapping[str, Sequence[str]]) -> str:
    return blocks.attention_class(family, built["Attention"], [*makers["Attention"], *_switch_types(family)])


def _latent(parts: Parts) -> str:
    """The class of attentions with a cache of latents; one serves all such layers."""
    (layer, spec), *_ = parts.latents.items()
    q, o = (parts.linears[role][layer] for role in ("q", "o"))
    assert q is not None
    assert o is not None
    for role in ("q", "o"):
        kinds = {linear.kind for at in parts.latents if (linear := parts.linears[role][at]) is not None}
        refuse(kinds != {None}, f"latent attention around {sorted(map(str, kinds))}", "original query and output projections")
    return latent_class(parts.family, q, o, spec.options["scale"])


def _rows(parts: Parts, columns: Mapping[str, Sequence[str]], usual: Mapping[str, bool]) -> list[tuple[str, str]]:
    """Per layer the expressions of its attention and of its MLP."""

    def cells(name: str, layer: int) -> list[str]:
        return [cell(linear, usual) for role in columns[name] if (linear := parts.linears[role][layer])]

    rows = []
    for layer, switches in enumerate(_switches(parts.family)):
        attention = f"Attention({', '.join([*cells('Attention', layer), *switches])})"
        if layer in parts.latents:
            attention = latent_expression(parts.family, parts.latents[layer], layer)
        replaced = parts.surrogates.get(layer)
        rows.append((attention, replaced.expression if replaced else f"MLP({', '.join(cells('MLP', layer))})"))
    return rows


def _varying(family: Family) -> dict[str, Sequence[object]]:
    """What differs between the attentions of two layers, beside their linears."""
    per_layer = {"window": family.windows, "rotary": family.rope_layers, "scale": family.scales}
    varying: dict[str, Sequence[object]] = {name: values for name, values in per_layer.items() if len(set(values)) > 1}
    crystallized = any(rank is not None for rank in family.averaged)
    return varying | ({"averaged": family.averaged} if crystallized else {})


def _switch_types(family: Family) -> list[str]:
    return [_SWITCHES[name] for name in _varying(family)]


def _switches(family: Family) -> list[list[str]]:
    """Per layer the keyword arguments of its attention."""
    texts = {"window": lambda v: "window=WINDOW" if v else "", "rotary": lambda v: "" if v else "rotary=False"}
    texts["averaged"] = lambda v: "" if v is None else f"averaged={v}"
    varying = _varying(family)
    return [
        [text for name, values in varying.items() if (text := texts.get(name, lambda v: f"scale={v!r}")(values[layer]))]
        for layer in range(family.layers)
    ]


def _built(family: Family, linears: Sequence[Linear], role: str, tabled: bool) -> str:
    """The expression in a class that makes a role's linear."""
    d_in, d_out = blocks.role_shape(family, role)
    if tabled:
        return f"{role}({d_in}, {d_out})"
    return f"nn.Linear({d_in}, {d_out}{'' if linears[0].bias else ', bias=False'})"


def _head(head: Linear | None) -> str:
    """The expression that makes the output projection, "" where the embeddings serve."""
    if head is None:
        return ""
    if head.kind is None:
        return f"nn.Linear(D_MODEL, VOCABULARY{'' if head.bias else ', bias=False'})"
    if head.literal:
        return f"({head.literal})(D_MODEL, VOCABULARY)"
    bias = {} if head.bias is None else {"bias": head.bias}
    options = keywords({key: repr(value) for key, value in (dict(head.options) | bias).items()})
    return f"{head.builds}(D_MODEL, VOCABULARY, {options})"


def _copied(parts: Parts, tabled: Sequence[Linear]) -> list[Any]:
    """Classes of compress that the file uses, each once."""
    linears = [linear for linear in [*tabled, *([parts.head] if parts.head else [])] if linear.builds != "nn.Linear"]
    classes = [KINDS[str(linear.kind)] for linear in linears]
    functions = [crystallize] if any(rank is not None for rank in parts.family.averaged) else []
    return list(dict.fromkeys([*functions, *classes, *(item.inlined for item in parts.surrogates.values() if item.inlined)]))


def _aliases(family: Family, tabled: Sequence[Linear]) -> str:
    letter = "G" if family.kv_heads != family.heads else "H"
    lines = [
        f"KeyValue = tuple[Tensor, Tensor]  # keys and values of one layer, each (B, {letter}, S, C)",
        "Cache = list[KeyValue]",
    ]
    if family.rope:
        lines.append("Rope = tuple[Tensor, Tensor]  # cosine and sine of the new tokens' angles, each (T, C/2)")
    if tabled:
        lines.append("Maker = Callable[[int, int], nn.Module]  # (d_in, d_out) → a linear of that shape")
    return "\n".join(lines)


def _letters(family: Family) -> str:
    shared = ", G key/value heads" if family.kv_heads != family.heads else ""
    return (
        f"Shapes: B sequences, T new tokens, S all tokens so far, D d_model, F d_ff, H heads{shared}, C head_dim, V vocabulary."
    )


def _summary(parts: Parts) -> str:
    """Which modules are not the original ones, in a sentence."""
    counts = Counter(linear.builds for linear in parts.of(*parts.linears) if linear.kind is not None)
    told = [f"{count} of its linears are {name}" for name, count in counts.items()]
    if few := [str(layer) for layer, rank in enumerate(parts.family.averaged) if rank is not None]:
        told.append(f"the attention of layers {', '.join(few)} reads its top value and averages few dimensions beside it")
    if parts.latents:
        told.append(f"the attention of layers {', '.join(map(str, parts.latents))} caches latents instead of keys and values")
    layers: dict[str, list[str]] = {}
    for layer, item in parts.surrogates.items():
        name = "SymbolicMLP" if item.symbolic else item.expression.partition("(")[0]
        layers.setdefault(name, []).append(str(layer))
    for name, (*others, last) in layers.items():
        many = f"s of layers {', '.join(others)} and {last} are" if others else f" of layer {last} is"
        told.append(f"the MLP{many} {name}")
    return f"Written by compress {__version__} for one checkpoint{': ' * bool(told)}{'; '.join(told)}."


def _imports(body: str, candidates: Iterable[str]) -> str:
    """Those import lines whose name the body uses."""

    def used(line: str) -> bool:
        return any(
            re.search(rf"\b{name}\b", body) for name in re.split(r",\s*", line.rpartition("import ")[2].rpartition(" as ")[2])
        )

    single = (
        f"{line.rpartition('import ')[0]}import {name}" if line.startswith("from") else line
        for line in candidates
        for name in line.rpartition("import ")[2].split(", ")
    )
    return import_block(line for line in single if used(line))
