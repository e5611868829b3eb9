"""Pivots whose order costs nothing: the channels inside an MLP stand in the order in which a pivoted linear gives them.

A pivoted linear computes [pivots; others] and then puts its outputs back in order. Nothing outside an MLP sees the order of
its inner channels: where gate (else up) is pivoted its outputs stay as they come, and the rows of the other one, the columns
of down and the biases follow. Elsewhere it is not free: the residual stream and rotary positions fix the order of outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from compress.methods.base import Replacement
from compress.plan import ModuleSpec
from compress.stream.model import StreamedModel

_KINDS = ("low_rank_linear", "pivoted_linear", "dense_linear")  # what can be rearranged, besides the original linears


class _Lazy(Mapping[str, Tensor]):
    """Tensors that are made each time they are asked for: what they are made of may be in files."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def with_free_orders(model: StreamedModel, replacements: Sequence[Replacement]) -> list[Replacement]:
    """The replacements with one pivoted linear of each MLP giving its outputs as they come, and without its `order`.

    The same function up to the rounding of down's sums. Originals that are rearranged, with no spec of their own, go with the
    replacement of the linear they follow.
    """
    out = list(replacements)
    specs = {spec.module: (index, spec) for index, r in enumerate(out) for spec in r.specs}
    for layer in range(model.n_layers):
        modules = {role: model.architecture.module(layer, role) for role in model.architecture.mlp_roles}
        kinds = {module: specs[module][1].kind if module in specs else None for module in modules.values()}
        first = next((modules[r] for r in ("gate", "up") if kinds.get(modules.get(r, "")) == "pivoted_linear"), None)
        if first is None or any(kind is not None and kind not in _KINDS for kind in kinds.values()):
            continue
        lead = specs[first][0]
        channels = out[lead].tensors[f"{first}.order"].argsort()  # channel j is what was channel channels[j]
        originals = [module for module, kind in kinds.items() if kind is None]
        out[lead] = _as_it_comes(out[lead], first, originals, model)
        moves: dict[str, tuple[int, Tensor]] = {}
        for role, module in modules.items():
            spec = specs[module][1] if module in specs else None
            side = _columns if role == "down" else _rows
            moves |= side(module, spec, channels, model.architecture.conv1d)
        for index in {specs[module][0] for module in kinds if module in specs}:
            out[index] = replace(out[index], tensors=_moved(out[index].tensors, moves))
    return out


def _as_it_comes(lead: Replacement, first: str, originals: Sequence[str], model: StreamedModel) -> Replacement:
    """The replacement of `first` without its order, and with the tensors of the original modules that have to follow."""
    followers = {
        model.full_name(stored): partial(model.shards.tensor, stored)
        for stored in model.shards
        if model.full_name(stored).rpartition(".")[0] in originals
    }
    own = {name: partial(lead.tensors.__getitem__, name) for name in lead.tensors if name != f"{first}.order"}
    specs = (
        spec.model_copy(update={"options": {**spec.options, "reorder": False}}) if spec.module == first else spec
        for spec in lead.specs
    )
    return replace(lead, specs=tuple(specs), tensors=_Lazy(own | followers), removed=(*lead.removed, *originals))


def _rows(module: str, spec: ModuleSpec | None, channels: Tensor, conv1d: bool) -> dict[str, tuple[int, Tensor]]:
    """{tensor: (dimension, indices)} that put a linear's outputs in the order of `channels`; an original (without spec) may
    be stored (d_in, d_out).
    """
    name = "order" if spec is not None and spec.kind == "pivoted_linear" else "weight"
    return {f"{module}.{name}": (int(spec is None and conv1d), channels), f"{module}.bias": (0, channels)}


def _columns(module: str, spec: ModuleSpec | None, channels: Tensor, conv1d: bool) -> dict[str, tuple[int, Tensor]]:
    """As `_rows`, for a linear's inputs."""
    if spec is None:
        return {f"{module}.weight": (int(not conv1d), channels)}
    if spec.kind != "dense_linear":
        return {f"{module}.basis": (1, channels)}
    bias = torch.arange(len(channels), len(channels) + bool(spec.options.get("extra_bias")))
    return {f"{module}.weight": (1, torch.cat([channels, bias]))}


def _moved(tensors: Mapping[str, Tensor], moves: Mapping[str, tuple[int, Tensor]]) -> Mapping[str, Tensor]:
    def made(name: str) -> Tensor:
        return tensors[name].index_select(*moves[name]) if name in moves else tensors[name]

    return _Lazy({name: partial(made, name) for name in tensors})
