"""Pivots whose order costs nothing: the channels inside an MLP stand in the order in which a pivoted linear gives them.

A pivoted linear computes [pivots; others] and then puts its outputs back in order. Nothing outside an MLP sees the order of
its inner channels: where gate (else up) is pivoted its outputs stay as they come, and the rows of the other one, the columns
of down and the biases follow. Elsewhere it is not free: the residual stream and rotary positions fix the order of outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from compress import kinds
from compress.kinds.contract import Kind, Moves
from compress.methods.base import Replacement
from compress.plan import ModuleSpec
from compress.stream.model import StreamedModel


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
    places = {spec.module: (index, kinds.of(spec)) for index, r in enumerate(out) for spec in r.specs}
    for layer in range(model.n_layers):
        modules = {role: model.architecture.module(layer, role) for role in model.architecture.mlp_roles}
        found = {module: places[module][1] if module in places else None for module in modules.values()}
        # One pivoted linear of each MLP may lead, gate before up; the others keep their order tensors, rearranged.
        leading = (
            modules[role] for role in ("gate", "up") if (kind := found.get(modules.get(role, ""))) and kind.as_they_come()
        )
        if (first := next(leading, None)) is None:
            continue
        lead, kind = places[first]
        order, plain = _named(kind.as_they_come())
        channels = out[lead].tensors[f"{first}.{order}"].argsort()  # channel j is what was channel channels[j]
        moves = _moves(modules, found, channels, model.architecture.conv1d)
        if moves is None:  # one linear of this MLP cannot follow
            continue
        originals = [module for module, kind in found.items() if kind is None]
        out[lead] = _as_it_comes(out[lead], f"{first}.{order}", plain.spec(first), originals, model)
        # Each replacement once, though it may hold several of the MLP's linears.
        for index in {places[module][0] for module in found if module in places}:
            out[index] = replace(out[index], tensors=_moved(out[index].tensors, moves))
    return out


def _named(found: tuple[str, Kind] | None) -> tuple[str, Kind]:
    assert found is not None  # asked for where it is there
    return found


def _moves(modules: Mapping[str, str], found: Mapping[str, Kind | None], channels: Tensor, conv1d: bool) -> Moves | None:
    """{full tensor name: (dimension, indices)} that let all linears of an MLP follow; None where one of them cannot."""
    out: Moves = {}
    for role, module in modules.items():
        kind, inputs = found[module], role == "down"
        own = _of_original(channels, inputs, conv1d) if kind is None else _of_kind(kind, channels, inputs)
        if own is None:
            return None
        out |= {f"{module}.{name}": move for name, move in own.items()}
    return out


def _of_kind(kind: Kind, channels: Tensor, inputs: bool) -> Moves | None:
    return kind.move_inputs(channels) if inputs else kind.move_outputs(channels)


def _of_original(channels: Tensor, inputs: bool, conv1d: bool) -> Moves:
    """An original linear may be stored (d_in, d_out)."""
    # (d_out, d_in) has outputs in dimension 0, Conv1D's (d_in, d_out) in dimension 1; a bias goes with the outputs.
    return {"weight": (int(inputs != conv1d), channels)} | ({} if inputs else {"bias": (0, channels)})


def _as_it_comes(
    lead: Replacement, order: str, spec: ModuleSpec, originals: Sequence[str], model: StreamedModel
) -> Replacement:
    """The replacement with `spec` in its module's place, without its order, and with the tensors of the original modules that
    have to follow.
    """
    followers = {
        model.full_name(stored): partial(model.shards.tensor, stored)
        for stored in model.shards
        if model.full_name(stored).rpartition(".")[0] in originals
    }
    own = {name: partial(lead.tensors.__getitem__, name) for name in lead.tensors if name != order}
    specs = tuple(spec if other.module == spec.module else other for other in lead.specs)
    # The originals are stored with the replacement from now on: as they are, they must not be.
    return replace(lead, specs=specs, tensors=_Lazy(own | followers), removed=(*lead.removed, *originals))


def _moved(tensors: Mapping[str, Tensor], moves: Mapping[str, tuple[int, Tensor]]) -> Mapping[str, Tensor]:
    def made(name: str) -> Tensor:
        return tensors[name].index_select(*moves[name]) if name in moves else tensors[name]

    return _Lazy({name: partial(made, name) for name in tensors})
