"""How every linear of a checkpoint reads in the standalone file, and where its tensors come from.

A linear that is dense in all layers is written into its class. One that is replaced anywhere becomes an argument of the class,
and the table of layers says `low_rank(51)` or `dense()` for each layer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compress.nn import KINDS, WRAPPERS
from compress.plan import ModuleSpec
from compress.source.family import Family, refuse


@dataclass(frozen=True)
class Source:
    """One tensor of the standalone file: its name there, its name in the checkpoint, and what happens on the way."""

    name: str
    stored: str
    transposed: bool = False
    part: tuple[slice | int, ...] = (slice(None),)
    cast: bool = True  # to the export's dtype; some parameters are float32 in every dtype


# Arguments of the classes in `compress.nn.linear` that have a default: a maker takes them where one of its linears differs.
_OPTIONAL: dict[str, tuple[str, bool | None]] = {"reorder": ("bool", True), "owner": ("str | None", None)}


@dataclass(frozen=True)
class Linear:
    """One linear. `options` and `bias` are the maker's arguments; `literal` stands in where those do not say it all."""

    maker: str  # name of the small function in the file, e.g. low_rank
    builds: str  # the class, e.g. LowRankLinear
    kind: str | None  # None where it is the original
    options: tuple[tuple[str, int | float | bool | str | None], ...]
    bias: bool | None  # None where the class has no such argument
    literal: str
    sources: tuple[Source, ...]


def original_linear(family: Family, name: str, target: str, natural: tuple[int, int], stored: Mapping[str, Any]) -> Linear:
    """The dense linear `name` of the checkpoint, `target` in the file.

    Raises ValueError where it is not of shape `natural` (d_in, d_out).
    """
    transposed = family.row.conv1d and name != family.row.head
    shape = tuple(stored.get(f"{name}.weight", ()))
    if (shape if transposed else shape[::-1]) != natural:
        raise ValueError(
            f"{name}.weight is {shape}, config.json says d_in, d_out = {natural}; the files do not belong together"
        )
    sources = [Source(f"{target}.weight", f"{name}.weight", transposed=transposed)]
    if bias := f"{name}.bias" in stored:
        sources.append(Source(f"{target}.bias", f"{name}.bias"))
    return Linear("dense", "nn.Linear", None, (), bias, "", tuple(sources))


def replaced_linear(family: Family, spec: ModuleSpec, target: str, natural: tuple[int, int], stored: Collection[str]) -> Linear:
    """The replacement of a linear. Raises NotImplementedError for a kind that wraps a Conv1D."""
    wraps = spec.kind in WRAPPERS
    refuse(wraps and family.row.conv1d, f"{spec.kind!r} around a Conv1D", "kinds that replace it, or families of nn.Linear")
    for original_bias in (True, False):
        names = meta_state(spec, nn.Linear(*natural, bias=original_bias, device="meta"))
        if all(f"{spec.module}.{name}" in stored for name in names):
            break
    options: dict[str, Any] = dict(spec.options)
    sources = [Source(f"{target}.{name}", f"{spec.module}.{name}", cast=cast) for name, cast in names.items()]
    if options.pop("extra_bias", False):  # kept in the weight for the sake of loaders that the file does not have
        columns = {"weight": slice(None, -1), "bias": -1}
        sources = [Source(f"{target}.{name}", f"{spec.module}.weight", part=(slice(None), c)) for name, c in columns.items()]
        options["bias"] = True
    if options.get("owner") is not None:
        options["owner"] = place(family, options["owner"])
    builds = "nn.Linear" if spec.kind == "dense_linear" else KINDS[spec.kind].__name__
    literal = ""
    if wraps:
        literal = f"lambda *shape: {builds}(nn.Linear(*shape, bias={original_bias}), {_arguments(options)})"
    elif (options.get("in_features"), options.get("out_features")) != natural or not all(map(_plain, options.values())):
        literal = f"lambda *_: {builds}({_arguments(options)})"
    bias = options.pop("bias", None)
    needed = {key: value for key, value in options.items() if key not in ("in_features", "out_features", *_OPTIONAL)}
    asked = {key: options[key] for key in _OPTIONAL if options.get(key, _OPTIONAL[key][1]) != _OPTIONAL[key][1]}
    rest = tuple((needed | asked).items())
    return Linear(spec.kind.removesuffix("_linear"), builds, spec.kind, rest, bias, literal, tuple(sources))


def place(family: Family, module: str) -> str:
    """Name in the file of a linear of the checkpoint. Raises ValueError for one that is neither in a layer nor the head."""
    if module == family.row.head:
        return "head"
    located = family.row.locate(module)
    if located is None:
        raise ValueError(f"the plan names {module!r}, which is no linear of {family.row.model_type}; the files are damaged")
    layer, role = located
    return f"layers.{layer}.{'mlp' if role in family.row.mlp_roles else 'attention'}.{role}"


def meta_state(spec: ModuleSpec, original: nn.Module) -> dict[str, bool]:
    """Tensor names of a spec's runtime module; False where one stays float32 when the model is loaded in bfloat16."""
    from compress.loading.quantizer import build

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            state = build(spec, original).state_dict()
    finally:
        torch.set_default_dtype(before)
    return {name: value.dtype != torch.float32 for name, value in state.items()}


def usual_bias(linears: Sequence[Linear]) -> dict[str, bool]:
    """The more frequent bias of each maker: the default of its argument."""
    counts: dict[str, Counter[bool]] = {}
    for linear in linears:
        if linear.bias is not None and not linear.literal:
            counts.setdefault(linear.maker, Counter())[linear.bias] += 1
    return {maker: count.most_common(1)[0][0] for maker, count in counts.items()}


def cell(linear: Linear, usual: Mapping[str, bool]) -> str:
    """The linear's entry in the table of layers."""
    if linear.literal:
        return linear.literal
    (first, *rest) = (*linear.options, None) if linear.options else (None,)
    parts = [] if first is None else [repr(first[1])]
    parts += [f"{key}={_text(value)}" for key, value in filter(None, rest)]
    parts += [f"bias={linear.bias}"] * (linear.bias is not None and linear.bias != usual[linear.maker])
    return f"{linear.maker}({', '.join(parts)})"


def maker_source(linears: Sequence[Linear], usual: Mapping[str, bool]) -> str:
    """The small functions that the table calls, one per kind."""
    makers: dict[str, list[Linear]] = {}
    for linear in linears:
        if not linear.literal:
            makers.setdefault(linear.maker, []).append(linear)
    out = []
    for maker, own in makers.items():
        keys = dict(pair for linear in own for pair in linear.options)
        needed = {key: type(value).__name__ for key, value in keys.items() if key not in _OPTIONAL}
        asked = {key: f"{kind} = {default}" for key, (kind, default) in _OPTIONAL.items() if key in keys}
        parameters = [f"{key}: {text}" for key, text in (needed | asked).items()]
        passed = [f"{key}={key}" for key in needed | asked]
        if own[0].bias is not None:
            parameters.append(f"bias: bool = {usual[maker]}")
            passed.append("bias=bias")
        out.append(
            f"def {maker}({', '.join(parameters)}) -> Maker:\n"
            f"    return lambda d_in, d_out: {own[0].builds}({', '.join(['d_in', 'd_out', *passed])})"
        )
    return "\n\n\n".join(out)


def fixed(linears: Sequence[Linear]) -> bool:
    """Whether all layers have the original linear, so that it needs no argument."""
    return all(linear.kind is None and linear.bias == linears[0].bias for linear in linears)


def keywords(options: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def _arguments(options: Mapping[str, Any]) -> str:
    """A call's arguments, the shape by position."""
    shape = [repr(options[key]) for key in ("in_features", "out_features") if key in options]
    return ", ".join(
        [*shape, *(f"{key}={_text(value)}" for key, value in options.items() if key not in ("in_features", "out_features"))]
    )


def _plain(value: object) -> bool:
    return value is None or isinstance(value, int | float | bool | str)


def _text(value: object) -> str:
    """As a formatter would leave it."""
    return json.dumps(value) if isinstance(value, str) else repr(value)
