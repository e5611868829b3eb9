"""The text of the standalone file: every piece in the order a reader wants it, and no import that is not used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

from compress import kinds
from compress.kinds.contract import Kind
from compress.source.family import Family, refuse
from compress.source.inline import import_block, inline, refuse_twice
from compress.version import __version__
from exporters.torch import blocks
from exporters.torch.layout import WIDTH, laid_out
from exporters.torch.linears import Linear, cell, fixed, keywords, maker_source, usual_bias
from exporters.torch.model import block_class, layer_table, model_class
from exporters.torch.parts import Parts
from exporters.torch.runtime import IMPORTS, RUNTIME

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
}


def source(parts: Parts) -> str:
    """The whole file. Raises ValueError where what a kind has copied into it takes a name of the file's own."""
    family = parts.family
    roles = {
        "Attention": [role for role in family.row.roles if role not in family.row.mlp_roles],
        "MLP": list(family.row.mlp_roles),
    }
    # Roles that are replaced anywhere are arguments of their class; the others are written into it.
    columns = {name: [role for role in group if not fixed(parts.of(role))] for name, group in roles.items()}
    tabled = parts.of(*columns["Attention"], *columns["MLP"])
    usual = usual_bias(tabled)
    # A role that no layer has any more, of MLPs that are replaced, is in no class.
    built = {
        name: {role: _built(family, parts.of(role), role, role in columns[name]) for role in group if parts.of(role)}
        for name, group in roles.items()
    }
    makers = {name: [f"{role}: Maker" for role in group] for name, group in columns.items()}
    inlined = inline(_copied(parts, tabled))
    own = parts.own_attentions
    pieces = [
        blocks.norm_class(family),
        inlined.text,
        maker_source(tabled, usual),
        blocks.rotary_functions(family),
        blocks.mask_function(family),
        # The family's own attention, unless no layer has it any more.
        *([] if len(own) == family.layers else [_attention(parts, built, makers)]),
        *([_own_attention(parts)] if own else []),
        blocks.mlp_class(family, built["MLP"], makers["MLP"]) if built["MLP"] else "",
        *_mlp_classes(parts),
        # Blocks may hold attentions of two classes, which have only nn.Module in common.
        block_class(family, "nn.Module" if own else "Attention"),
        layer_table(_rows(parts, columns, usual), columns),
        model_class(family, _head(parts.head), links=_linked(parts)),
    ]
    body = "\n\n\n".join(piece for piece in pieces if piece) + "\n"
    # Last, since only constants that the body and the runtime name are written.
    body = f"{blocks.constants(family, parts.end, body + RUNTIME)}\n\n{_aliases(family, tabled)}\n\n\n{body}"
    head = _HEAD.format(
        model_type=family.row.model_type,
        layers=family.layers,
        summary="\n".join(fill(line, WIDTH) for line in (_summary(parts), _letters(family))),
        imports=_imports(body + RUNTIME, [*IMPORTS, *inlined.imports]),
    )
    # The runtime is the same in every file, and laid out as it stands here: that saves half of the time.
    return refuse_twice(f"{laid_out(head + body)}\n\n{RUNTIME.strip()}\n")


def _attention(parts: Parts, built: Mapping[str, Mapping[str, str]], makers: Mapping[str, Sequence[str]]) -> str:
    arguments = [*makers["Attention"], *_switch_types(parts)]
    # With another attention function in every layer, the class has no branch for torch's.
    everywhere = len(parts.attentions) == parts.family.layers
    return blocks.attention_class(parts.family, built["Attention"], arguments, parts.switch, everywhere)


def _own_attention(parts: Parts) -> str:
    """The class of attentions of another kind; one serves all such layers."""
    placed = {layer: kind for layer, (kind, _) in parts.own_attentions.items()}
    (first, kind), *_ = placed.items()
    roles = [role for role in parts.family.row.attention_roles if parts.linears[role][first] is not None]
    for role in roles:
        replaced = {linear.builds for at in placed if (linear := parts.linears[role][at]) is not None and linear.replaced}
        refuse(replaced, f"{kind.kind} around {sorted(replaced)}", "original query and output projections")
    biases = {role: bool(linear.bias) for role in roles if (linear := parts.linears[role][first]) is not None}
    return type(kind).torch_attention_class(parts.family, placed, biases)


def _linked(parts: Parts) -> list[str]:
    """The classes whose modules are connected to others once all are made."""
    found = (kinds.of(spec) for spec in parts.plan.modules)
    return sorted({kind.runtime.__name__ for kind in found if kind.reads is not None})


def _mlp_classes(parts: Parts) -> Iterable[str]:
    """What the replaced MLPs need beside inlined classes, kind by kind, in the order of the layers."""
    by_kind: dict[type[Kind], dict[int, Kind]] = {}
    for layer, (kind, _) in parts.mlps.items():
        by_kind.setdefault(type(kind), {})[layer] = kind
    classes = [cls.torch_classes(placed) for cls, placed in by_kind.items()]
    # Short ones that all layers share come before those with a class for each layer.
    return [text for texts in sorted(classes, key=lambda texts: len(texts) > 1) for text in texts]


def _rows(parts: Parts, columns: Mapping[str, Sequence[str]], usual: Mapping[str, bool]) -> list[tuple[str, str]]:
    """Per layer the expressions of its attention and of its MLP."""

    def cells(name: str, layer: int) -> list[str]:
        return [cell(linear, usual) for role in columns[name] if (linear := parts.linears[role][layer])]

    rows = []
    for layer, switches in enumerate(_switches(parts)):
        attention = f"Attention({', '.join([*cells('Attention', layer), *switches])})"
        if layer in parts.own_attentions:
            attention = parts.attentions[layer][1].expression
        mlp = parts.mlps[layer][1].expression if layer in parts.mlps else f"MLP({', '.join(cells('MLP', layer))})"
        rows.append((attention, mlp))
    return rows


def _varying(family: Family) -> dict[str, Sequence[object]]:
    """What differs between the attentions of two layers, beside their linears."""
    per_layer = {"window": family.windows, "rotary": family.rope_layers, "scale": family.scales}
    return {name: values for name, values in per_layer.items() if len(set(values)) > 1}


def _switch_types(parts: Parts) -> list[str]:
    switch = parts.switch
    return [*(_SWITCHES[name] for name in _varying(parts.family)), *([f"{switch.name}: {switch.annotation}"] if switch else [])]


def _switches(parts: Parts) -> list[list[str]]:
    """Per layer the keyword arguments of its attention."""
    texts = {"window": lambda v: "window=WINDOW" if v else "", "rotary": lambda v: "" if v else "rotary=False"}
    # An empty text is the argument's default.
    out = [
        [
            text
            for name, values in _varying(parts.family).items()
            if (text := texts.get(name, lambda v: f"scale={v!r}")(values[at]))
        ]
        for at in range(parts.family.layers)
    ]
    if (switch := parts.switch) is not None:
        for layer, (_, form) in parts.attentions.items():
            out[layer] += [f"{switch.name}={form.argument}"] if form.argument is not None else []
    return out


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
    if not head.replaced:
        return f"nn.Linear(D_MODEL, VOCABULARY{'' if head.bias else ', bias=False'})"
    if head.literal:
        return f"({head.literal})(D_MODEL, VOCABULARY)"
    bias = {} if head.bias is None else {"bias": head.bias}
    options = keywords({key: repr(value) for key, value in (dict(head.options) | bias).items()})
    return f"{head.builds}(D_MODEL, VOCABULARY, {options})"


def _copied(parts: Parts, tabled: Sequence[Linear]) -> list[Any]:
    """Classes and functions of ours that the file uses, each once."""
    linears = [linear.inlined for linear in [*tabled, *([parts.head] if parts.head else [])]]
    functions = parts.switch.inlined if parts.switch else ()
    found = [*functions, *linears, *(form.inlined for _, form in parts.mlps.values())]
    # Each once, in the order in which they are met.
    return list(dict.fromkeys(item for item in found if item is not None))


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
    counts = Counter(linear.builds for linear in parts.of(*parts.linears) if linear.replaced)
    told = [f"{count} of its linears are {name}" for name, count in counts.items()]
    attentions: dict[str, list[str]] = {}
    for layer, (kind, _) in parts.attentions.items():
        attentions.setdefault(kind.told or f"is of kind {kind.kind}", []).append(str(layer))
    told += [f"the attention of layers {', '.join(layers)} {what}" for what, layers in attentions.items()]
    layers: dict[str, list[str]] = {}
    for layer, (_, form) in parts.mlps.items():
        layers.setdefault(form.told, []).append(str(layer))
    for name, (*others, last) in layers.items():
        many = f"s of layers {', '.join(others)} and {last} are" if others else f" of layer {last} is"
        told.append(f"the MLP{many} {name}")
    return f"Written by compress {__version__} for one checkpoint{': ' * bool(told)}{'; '.join(told)}."


def _imports(body: str, candidates: Iterable[str]) -> str:
    """Those import lines whose name the body uses."""

    def used(line: str) -> bool:
        # Of `import x as y` and `from x import y as z` the last name is the one that is used.
        return any(
            re.search(rf"\b{name}\b", body) for name in re.split(r",\s*", line.rpartition("import ")[2].rpartition(" as ")[2])
        )

    # One line per name, so that a name that is not used can go alone.
    single = (
        f"{line.rpartition('import ')[0]}import {name}" if line.startswith("from") else line
        for line in candidates
        for name in line.rpartition("import ")[2].split(", ")
    )
    return import_block(line for line in single if used(line))
