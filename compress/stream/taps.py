"""Taps: hooks on one resident layer that feed the statistics the methods ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from compress.architecture import Architecture
from compress.methods.base import Need
from compress.numerics.sample import Sample
from compress.numerics.statistics import HeadMoments, Moments, Statistic
from compress.parallel.lanes import Tree
from compress.parallel.world import world
from compress.stream.attention_tap import Residuals


class Collector:
    """Hooks on one resident layer that feed the statistics some needs ask for; equal needs share one accumulator."""

    def __init__(
        self,
        needs: Iterable[Need],
        layer: nn.Module,
        prefix: str,
        total_rows: int,
        architecture: Architecture,
        own: range,  # lanes
    ) -> None:
        self.start = 0
        self.values: dict[Need, Statistic] = {}  # of the lane at hand, and in the end of all
        self._own = own
        self._trees: dict[Need, Tree[Statistic]] = {}
        self._inputs: dict[str, Tensor] = {}
        self._handles = []
        self._architecture = architecture
        self._prefix = prefix
        canonical = self._needs = sorted({self.canonical(n) for n in needs}, key=repr)
        modules = dict(layer.named_modules())
        for need in canonical:
            read = modules[need.input_of.removeprefix(prefix)]
            if need.statistic == "residual":
                self._handles.append(Residuals(read, self._on_residual(need)))
            elif need.statistic == "gradient":
                self._handles.append(read.register_forward_hook(self._on_gradient(need, total_rows)))
            elif need.output_of is None:
                self._handles.append(read.register_forward_pre_hook(self._on_input(need, total_rows)))
            else:
                written = modules[need.output_of.removeprefix(prefix)]
                self._handles.append(read.register_forward_pre_hook(self._remember(need.input_of)))
                self._handles.append(written.register_forward_hook(self._on_output(need, total_rows)))

    def canonical(self, need: Need) -> Need:
        """The same need under the first role that reads the same activation, so that q, k and v share one accumulator."""
        located = self._architecture.locate(need.input_of)
        if located is None or need.output_of is not None or need.statistic in ("gradient", "residual"):
            return need
        layer, role = located
        first = self._architecture.module(layer, self._architecture.input_roles(role)[0])
        return Need(first, None, need.statistic, need.rows, need.seed)

    def __getitem__(self, need: Need) -> Statistic:
        return self.values[self.canonical(need)]

    def size(self, needs: Iterable[Need]) -> int:
        """Elements of the statistics behind some needs."""
        return sum(t.numel() for need in needs for t in self[need].tensors().values())

    def close_lane(self, lane: int) -> None:
        """All micro-batches of a lane have passed."""
        for need, value in self.values.items():
            self._trees.setdefault(need, Tree(self._own)).add(lane, value)
        self.values.clear()

    def close(self) -> None:
        """All lanes have passed, here and in the other processes: from now on `values` are the sums over all of them."""
        for handle in self._handles:
            handle.remove()
        self._inputs.clear()
        for need in self._needs:
            tree = self._trees.pop(need, None) or Tree(self._own)
            total = world().total(tree, _KINDS[need.statistic])
            if total is not None:
                self.values[need] = total

    def _update(self, need: Need, rows: Tensor, total_rows: int, start: int | None = None) -> None:
        if need not in self.values:
            size = rows.shape[-1]
            self.values[need] = Sample(need.rows, total_rows, need.seed) if need.statistic == "sample" else Moments(size)
        self.values[need].update(rows.detach(), self.start if start is None else start)

    def _on_input(self, need: Need, total_rows: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._update(need, args[0].reshape(-1, args[0].shape[-1]), total_rows)

        return hook

    def _remember(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._inputs[name] = args[0].reshape(-1, args[0].shape[-1])

        return hook

    def _on_output(self, need: Need, total_rows: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            rows = torch.cat([self._inputs[need.input_of], output.reshape(-1, output.shape[-1])], dim=1)
            self._update(need, rows, total_rows)

        return hook

    def _on_residual(self, need: Need) -> Callable[[Tensor], None]:
        def take(rows: Tensor) -> None:
            moments = self.values.setdefault(need, HeadMoments(rows.shape[1], rows.shape[2]))
            moments.update(rows.detach(), self.start)

        return take

    def _on_gradient(self, need: Need, total_rows: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            start = self.start
            output.register_hook(lambda g: self._update(need, g.reshape(-1, g.shape[-1]), total_rows, start))

        return hook


_KINDS: Mapping[str, type[Statistic]] = {"moments": Moments, "gradient": Moments, "sample": Sample, "residual": HeadMoments}
