"""Hidden states of all calibration tokens at one depth, and those before each layer in files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.checkpoint.disk import make, remove_tree
from compress.checkpoint.shards import save_tensors
from compress.parallel.lanes import MicroBatch, Summable, Tree
from compress.parallel.world import world
from compress.stream.taps import Collector

S = TypeVar("S", bound=Summable)


class NotFiniteError(ValueError):
    """Hidden states or logits are NaN or infinite."""


def leaving(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states of what a layer returns: some return a tuple."""
    return out[0] if isinstance(out, tuple) else out


_CPU = torch.device("cpu")
Calls = dict[tuple[int, ...], list[tuple[tuple[Any, ...], dict[str, Any]]]]  # (windows, length) → arguments of each layer


class Hidden:
    """Hidden states of this process's windows at one depth, by micro-batch, with the layers' call arguments by shape."""

    def __init__(
        self,
        states: list[Tensor],
        calls: Calls,
        pieces: Sequence[MicroBatch],
        shape: tuple[int, int, int],
        own: range,
        device: torch.device = _CPU,
    ) -> None:
        self.states = states  # (windows, length, d_model) each, on the device or waiting on the host
        self.calls = calls
        self.pieces = pieces  # which windows each of the states is
        self.windows, self.length, self.size = shape  # of all processes; d_model
        self.own = own  # lanes
        self.device = device  # where layers are

    @property
    def tokens(self) -> int:
        """Of all processes."""
        return self.windows * self.length

    def twin(self) -> Hidden:
        """A stream of its own from here on, with the same call arguments."""
        shape = self.windows, self.length, self.size
        return Hidden([state.clone() for state in self.states], self.calls, self.pieces, shape, self.own, self.device)

    def at(self, position: int) -> Tensor:
        """One micro-batch's states, on the device."""
        return self.states[position].to(self.device)

    def put(self, position: int, state: Tensor) -> None:
        """The states of one micro-batch from here on, where they waited before."""
        self.states[position] = state.to(self.states[position].device)

    def read(self) -> Iterator[Tensor]:
        """The states of each micro-batch, on the device."""
        return (self.at(position) for position in range(len(self.states)))

    def by_lane(self) -> Iterator[tuple[int, list[int]]]:
        """(lane, positions of its states), in order."""
        for lane, positions in itertools.groupby(range(len(self.states)), lambda position: self.pieces[position].lane):
            yield lane, list(positions)

    def summed(self, kind: type[S], of: Callable[[list[int]], S]) -> S:
        """The sum over all lanes, here and in the other processes, of what `of` makes of one lane's positions."""
        tree: Tree[S] = Tree(self.own)
        for lane, positions in self.by_lane():
            tree.add(lane, of(positions))
        total = world().total(tree, kind)
        assert total is not None  # there is a window
        return total

    def call(self, layer: nn.Module, index: int, state: Tensor) -> Tensor:
        """What a layer makes of one micro-batch."""
        args, kwargs = self.calls[tuple(state.shape[:2])][index]
        return leaving(layer(state, *args, **kwargs))

    def through(self, layer: nn.Module, index: int) -> Callable[[Tensor], Tensor]:
        """A layer as a function of hidden states (windows, length, d_model) of any number of windows."""
        # Any batch's arguments: they are equal for every window, and differ only in how many windows there are.
        args, kwargs = next(iter(self.calls.values()))[index]

        def call(states: Tensor) -> Tensor:
            return leaving(layer(states, *args, **{key: _for_windows(v, states.shape[0]) for key, v in kwargs.items()}))

        return call

    @torch.no_grad()
    def advance(
        self,
        layer: nn.Module,
        index: int,
        name: str,
        statistics: Collector | None = None,
        tick: Callable[[], None] | None = None,
    ) -> None:
        """Run every batch through the resident layer, in place. Raises NotFiniteError naming the layer."""
        for lane, positions in self.by_lane():
            for position in positions:
                if statistics is not None:
                    statistics.start = self.pieces[position].windows.start * self.length
                out = self.call(layer, index, self.at(position))
                if not bool(torch.isfinite(out).all()):
                    raise NotFiniteError(
                        f"{name}: NaN or Inf activations in calibration batch {position}; use dtype float32 or other text"
                    )
                self.put(position, out)
                if tick is not None:
                    tick()
            if statistics is not None:
                statistics.close_lane(lane)

    def retreat(
        self,
        layer: nn.Module,
        index: int,
        gradients: list[Tensor],
        statistics: Collector,
        tick: Callable[[], None] | None = None,
    ) -> None:
        """With the states entering the resident layer and the gradients leaving it, feed both kinds of statistics.

        `gradients` is replaced in place by those entering the layer.
        """
        for lane, positions in self.by_lane():
            for position in positions:
                statistics.start = self.pieces[position].windows.start * self.length
                leaf = self.at(position).detach().requires_grad_()
                out = self.call(layer, index, leaf)
                (entering,) = torch.autograd.grad(out, leaf, gradients[position].to(self.device))
                gradients[position] = entering.to(gradients[position].device)
                if tick is not None:
                    tick()
            statistics.close_lane(lane)


def _for_windows(value: Any, count: int) -> Any:
    """A call argument for `count` windows: one window's, broadcast."""
    if isinstance(value, tuple):
        return tuple(_for_windows(v, count) for v in value)
    # Masks and rotary tables are (windows, …); what has one dimension or none is not by window.
    if isinstance(value, Tensor) and value.ndim >= 2:
        return value[:1].expand(count, *value.shape[1:])
    return value


class Boundaries:
    """The hidden states before each layer, in files, so that a backward sweep needs neither all of them in memory nor a
    rerun.
    """

    def __init__(self, folder: Path, hidden: Hidden) -> None:
        self.folder, self.hidden = folder, hidden
        make(folder)

    def save(self, index: int) -> None:
        save_tensors(self.folder / f"{index}.safetensors", {f"{i:06d}": s for i, s in enumerate(self.hidden.states)})

    def load(self, index: int) -> None:
        states = load_file(self.folder / f"{index}.safetensors")
        self.hidden.states = [states[name] for name in sorted(states)]

    def delete(self) -> None:
        remove_tree(self.folder)
