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

from torch import nn

from compress import kinds
from compress.kinds.contract import state_dtypes
from compress.plan import ModuleSpec
from compress.source.family import Family, refuse
from compress.source.pieces import Scalar, Source


@dataclass(frozen=True)
class Linear:
    """One linear. `options` and `bias` are the maker's arguments; `literal` stands in where those do not say it all."""

    maker: str  # name of the small function in the file, e.g. low_rank
    builds: str  # the class, e.g. LowRankLinear
    replaced: bool
    inlined: type[nn.Module] | None  # the class that is copied into the file
    options: tuple[tuple[str, Scalar], ...]
    optional: Mapping[str, tuple[str, Scalar]]  # arguments with a default: (annotation, default)
    bias: bool | None  # None where the class has no such argument
    literal: str
    sources: tuple[Source, ...]


def original_linear(family: Family, name: str, target: str, natural: tuple[int, int], stored: Mapping[str, Any]) -> Linear:
    """The dense linear `name` of the checkpoint, `target` in the file.

    Raises ValueError where it is not of shape `natural` (d_in, d_out).
    """
    # GPT-2's Conv1D stores (d_in, d_out); the head is a plain linear even there.
    transposed = family.row.conv1d and name != family.row.head
    shape = tuple(stored.get(f"{name}.weight", ()))
    if (shape if transposed else shape[::-1]) != natural:
        raise ValueError(
            f"{name}.weight is {shape}, config.json says d_in, d_out = {natural}; the files do not belong together"
        )
    sources = [Source(f"{target}.weight", f"{name}.weight", transposed=transposed)]
    if bias := f"{name}.bias" in stored:
        sources.append(Source(f"{target}.bias", f"{name}.bias"))
    return Linear("dense", "nn.Linear", False, None, (), {}, bias, "", tuple(sources))


def replaced_linear(family: Family, spec: ModuleSpec, target: str, natural: tuple[int, int], stored: Collection[str]) -> Linear:
    """The replacement of a linear. Raises NotImplementedError for a kind that wraps a Conv1D."""
    kind = kinds.of(spec)
    refuse(kind.replaces != "linear", f"replacement of {spec.module!r} by {spec.kind!r}", "kinds of linears there")
    refuse(
        kind.wraps and family.row.conv1d, f"{spec.kind!r} around a Conv1D", "kinds that replace it, or families of nn.Linear"
    )
    # A kind that wraps keeps the original's bias, where it had one: only the tensors that are stored tell.
    for original_bias in (True, False):
        names = state_dtypes(kind, nn.Linear(*natural, bias=original_bias, device="meta"))
        if all(f"{spec.module}.{name}" in stored for name in names):
            break
    form = kind.torch_linear(lambda module: place(family, module))
    sources = [Source(f"{target}.{name}", f"{spec.module}.{name}", cast=cast) for name, cast in names.items()]
    if form.tensors:
        sources = [Source(f"{target}.{new}", f"{spec.module}.{old}", part=part) for new, (old, part) in form.tensors.items()]
    options = dict(form.options)
    literal = ""
    if kind.wraps:
        literal = f"lambda *shape: {form.builds}(nn.Linear(*shape, bias={original_bias}), {_arguments(options)})"
    elif (options.get("in_features"), options.get("out_features")) != natural or not all(map(_plain, options.values())):
        # Another shape than the class's own, or options that are no plain values: the table's small functions cannot say it.
        literal = f"lambda *_: {form.builds}({_arguments(options)})"
    # The bias has a default of its own in the table, the more frequent one (`usual_bias`).
    bias: Any = options.pop("bias", None)
    shape = ("in_features", "out_features")
    needed = {key: value for key, value in options.items() if key not in (*shape, *form.optional)}
    # What is the default is not written.
    asked = {key: options[key] for key, (_, usual) in form.optional.items() if options.get(key, usual) != usual}
    rest = tuple((needed | asked).items())
    maker = spec.kind.removesuffix("_linear")
    return Linear(maker, form.builds, True, form.inlined, rest, form.optional, bias, literal, tuple(sources))


def place(family: Family, module: str) -> str:
    """Name in the file of a linear of the checkpoint. Raises ValueError for one that is neither in a layer nor the head."""
    if module == family.row.head:
        return "head"
    located = family.row.locate(module)
    if located is None:
        raise ValueError(f"the plan names {module!r}, which is no linear of {family.row.model_type}; the files are damaged")
    layer, role = located
    return f"layers.{layer}.{'mlp' if role in family.row.mlp_roles else 'attention'}.{role}"


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
    # The first option by position, low_rank(51); the others by name.
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
        optional = own[0].optional  # of one class
        needed = {key: type(value).__name__ for key, value in keys.items() if key not in optional}
        asked = {key: f"{annotation} = {default}" for key, (annotation, default) in optional.items() if key in keys}
        parameters = [f"{key}: {text}" for key, text in (needed | asked).items()]
        passed = [f"{key}={key}" for key in needed | asked]
        # One class: all linears of a maker have a bias argument, or none has.
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
    return all(not linear.replaced and linear.bias == linears[0].bias for linear in linears)


def keywords(options: Mapping[str, str]) -> str:
    """Keyword arguments of a call."""
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
