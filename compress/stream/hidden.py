"""Hidden states of all calibration tokens at one depth, and those before each layer in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.checkpoint.disk import make, remove_tree
from compress.checkpoint.shards import save_tensors
from compress.stream.taps import Collector


class NotFiniteError(ValueError):
    """Hidden states or logits are NaN or infinite."""


def leaving(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states of what a layer returns: some return a tuple."""
    return out[0] if isinstance(out, tuple) else out


class Hidden:
    """Hidden states of all calibration tokens at one depth, in batches, with the layers' call arguments by batch shape."""

    def __init__(
        self, states: list[Tensor], calls: dict[tuple[int, ...], list[tuple[tuple[Any, ...], dict[str, Any]]]]
    ) -> None:
        self.states = states  # (batch, length, d_model) each
        self.calls = calls

    @property
    def tokens(self) -> int:
        return sum(s.shape[0] * s.shape[1] for s in self.states)

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
        start = 0
        for position, state in enumerate(self.states):
            args, kwargs = self.calls[tuple(state.shape[:2])][index]
            if statistics is not None:
                statistics.start = start
            out = leaving(layer(state, *args, **kwargs))
            if not bool(torch.isfinite(out).all()):
                raise NotFiniteError(
                    f"{name}: NaN or Inf activations in calibration batch {position}; use dtype float32 or other text"
                )
            self.states[position] = out
            start += state.shape[0] * state.shape[1]
            if tick is not None:
                tick()

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
        start = 0
        for position, state in enumerate(self.states):
            args, kwargs = self.calls[tuple(state.shape[:2])][index]
            statistics.start = start
            leaf = state.detach().requires_grad_()
            out = leaving(layer(leaf, *args, **kwargs))
            (gradients[position],) = torch.autograd.grad(out, leaf, gradients[position])
            start += state.shape[0] * state.shape[1]
            if tick is not None:
                tick()


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
