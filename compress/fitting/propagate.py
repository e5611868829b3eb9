"""Error propagation: each linear of a layer refitted on what the compressed layers before it really give.

Moments of the original layer and its twin are read on their own streams of hidden states; the correction and its draw
towards the weights are chosen on held-out windows, and a refit is kept only where its ROUNDED form misses less of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from compress.fitting.descent import mean_over_all
from compress.fitting.twin import Part, Twin, described, output_metric, recalled
from compress.methods.base import Material, Need
from compress.numerics.correction import Regression, Target
from compress.numerics.statistics import CrossMoments, Statistic
from compress.parallel.world import world
from compress.stream.hidden import Hidden

HELD_OUT = 8  # every eighth window is held out


def propagate(twin: Twin, parts: Sequence[Part], original: Hidden, compressed: Hidden) -> list[Part]:
    """Refit the layer's linears in the order the layer runs them, each on the inputs that the ones before it now give."""
    architecture = twin.model.architecture
    out = {id(part): part for part in parts}
    # In the order of `inputs`, the one the layer runs them in: each stage sees the student with the earlier ones refitted.
    for roles in architecture.inputs:
        names = {architecture.module(twin.index, role) for role in roles}
        stage = [part for part in parts if _can_be_refitted(part, twin) and set(part.unit.group.modules) <= names]
        if not stage:
            continue
        # Roles of one stage read the same input, so one tap serves them all.
        tap = architecture.roles[roles[0]]
        read = cross_moments(twin, tap, original, compressed)
        # Each by one of the processes: a decomposition takes longer than its result does on its way.
        for turn, part in enumerate(stage):
            out[id(part)] = _by(turn % world().size, twin, part, lambda part=part, read=read: _better(twin, part, read))
    refitted = list(out.values())
    if all(new is old for new, old in zip(refitted, parts, strict=True)):
        return refitted
    # Each refit misses less of what its own linear gave; together they may still miss more of what the layer gives.
    metric = output_metric(twin, parts, original.size)
    after = missed(twin, metric, original, compressed)
    for part in parts:
        twin.install(part.replacement)
    return refitted if after < missed(twin, metric, original, compressed) else list(parts)


def _by(owner: int, twin: Twin, part: Part, make: Callable[[], Part]) -> Part:
    """What the process `owner` makes of a part, installed in the students of all of them."""
    if world().size == 1:
        return make()
    if owner == world().rank:
        made = make()
        world().made(owner, (None, {}) if made is part else (described(made.replacement), made.replacement.tensors))
        return made
    description, tensors = world().made(owner, None)
    if description is not None:
        part = replace(part, replacement=recalled(part.replacement, description, tensors))
    twin.install(part.replacement)
    return part


@torch.no_grad()
def missed(twin: Twin, metric: Tensor, original: Hidden, compressed: Hidden) -> float:
    """What leaves the student against what leaves the original layer: (h' − h)ᵀ metric (h' − h) / ‖h‖², mean over the tokens of
    the held-out windows. A norm follows, so that every token counts alike, however large it is.
    """
    metric = metric.to(twin.model.dtype).to(twin.model.device)
    before, after = original.through(twin.layer, twin.index), compressed.through(twin.student, twin.index)
    by_window: list[float] = []
    held_out = held_out_windows(original.windows)
    for piece, clean, shifted in zip(original.pieces, original.read(), compressed.read(), strict=True):
        held = held_out[piece.windows]
        if held.any():
            wanted = before(clean[held])
            off = after(shifted[held]) - wanted
            share = ((off @ metric) * off).sum(-1) / wanted.square().sum(-1).clamp_min(1e-30)
            by_window += share.cpu().double().mean(-1).tolist()
    return mean_over_all(by_window)


@dataclass(frozen=True)
class Stage:
    """What the linears that read one tap are refitted on: the moments of its inputs, of the windows that a refit may use and of
    those held out, and the regressions they give.
    """

    fitted_on: CrossMoments
    held_out: CrossMoments

    def settle(self) -> None:
        self.fitted_on.settle()
        self.held_out.settle()

    def merge(self, other: Stage) -> None:
        self.fitted_on.merge(other.fitted_on)
        self.held_out.merge(other.held_out)

    def state(self) -> dict[str, Tensor]:
        parts = {"fitted_on": self.fitted_on, "held_out": self.held_out}
        return {f"{part}.{key}": value for part, moments in parts.items() for key, value in moments.state().items()}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> Stage:
        def part(name: str) -> CrossMoments:
            mine = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
            return CrossMoments.from_state(mine)

        return cls(part("fitted_on"), part("held_out"))

    def regression(self, free_bias: bool) -> Regression:
        """The one for linears whose bias may or may not move, made when it is first asked for."""
        return self.with_bias if free_bias else self.without_bias

    @cached_property
    def with_bias(self) -> Regression:
        return Regression(self.fitted_on, self.held_out, True)

    @cached_property
    def without_bias(self) -> Regression:
        return Regression(self.fitted_on, self.held_out, False)


def held_out_windows(count: int) -> Tensor:
    """Which of `count` windows no refit sees, (count,) bool: every eighth; of fewer, the last one."""
    chosen = torch.arange(count) % HELD_OUT == HELD_OUT - 1
    if not chosen.any():
        chosen[-1] = True
    return chosen


def _can_be_refitted(part: Part, twin: Twin) -> bool:
    """Dense ones stay the original; a method must ask for nothing that is not known of the changed inputs."""
    needs = part.method.needs(part.unit.group, twin.model.architecture).values()
    linear = part.unit.method.replaces == "linear" and bool(part.replacement.specs)
    return linear and all(_known_again(need) for need in needs)


def _better(twin: Twin, part: Part, stage: Stage) -> Part:
    """The refitted part where it misses less of the held-out windows, else the part as it is; installed in the student."""
    targets = _targets(twin, part)
    twin.install(part.replacement)
    # Both errors on the rounded module, so that the comparison is of what will be stored.
    before = _error(twin, targets, stage.held_out)
    refitted = _refit(twin, part, targets, stage)
    twin.install(refitted.replacement)
    if _error(twin, targets, stage.held_out) < before:  # NaN is no gain
        return refitted
    twin.install(part.replacement)
    return part


def _targets(twin: Twin, part: Part) -> dict[str, Target]:
    """What each module of a part gave on the original's inputs, weighed by the loss gradient where the method does."""
    group, architecture = part.unit.group, twin.model.architecture
    material = Material(group, architecture, twin.model.layer_weights(twin.index), {}, twin.layer, twin.seed)
    weighed = {n.input_of for n in part.method.needs(group, architecture).values() if n.statistic == "gradient"}
    out = {}
    for module in group.modules:
        weight, bias = material.linear(module)
        gradient = twin.gradients.read(module) if module in weighed else None
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        out[module] = Target(weight, bias, None if gradient is None else gradient.second_moment)
    return out


def _error(twin: Twin, targets: Mapping[str, Target], moments: CrossMoments) -> float:
    """What the modules now in the student miss of their targets, as the checkpoint will hold them: rounded."""
    total = 0.0
    for module, target in targets.items():
        weight, bias = affine(twin.student.get_submodule(twin.inside(module)), target.weight.shape[1])
        total += target.error(weight, bias, moments)
    return total


def _refit(twin: Twin, part: Part, targets: Mapping[str, Target], stage: Stage) -> Part:
    """min E‖W x + b − (L R x' + b')‖²: the correction of each weight for x', decomposed under the metric of x'."""
    architecture, group = twin.model.architecture, part.unit.group
    weights = dict(twin.model.layer_weights(twin.index))
    for module, target in targets.items():
        # Only a bias that the replacement stores can take up an offset.
        free_bias = f"{module}.bias" in part.replacement.tensors
        _, weight, bias = stage.regression(free_bias).best(target)
        # Where the original is Conv1D, `Material` expects (d_in, d_out).
        weights[f"{module}.weight"] = weight.T if architecture.conv1d else weight
        if free_bias:
            weights[f"{module}.bias"] = bias
    statistics: dict[str, Statistic] = {}
    for key, need in part.method.needs(group, architecture).items():
        gradient = twin.gradients.read(need.input_of) if need.statistic == "gradient" else None
        # The gradient is the first pass's: the loss felt the original layer. Moments are those of x'.
        statistics[key] = stage.fitted_on.input if gradient is None else gradient
    artefact = part.method.fit(Material(group, architecture, weights, statistics, twin.layer, twin.seed))
    return replace(part, replacement=part.method.replace(group, artefact, architecture))


def _known_again(need: Need) -> bool:
    """Whether a statistic can be had on the inputs that the compressed layers give: moments of what a linear reads, and the
    gradient's, which are the first pass's.
    """
    return need.statistic == "gradient" or (need.statistic == "moments" and need.output_of is None)


@torch.no_grad()
def affine(module: nn.Module, d_in: int) -> tuple[Tensor, Tensor]:
    """(weight (d_out, d_in), bias (d_out,)) of a module that computes an affine map, float64: seen, not read."""
    like = next(module.parameters())
    # f(0) = b, and f of the unit vectors less b are the columns of W: whatever kind computes it.
    bias = module(torch.zeros(1, d_in).to(like))[0].cpu().double()
    return (module(torch.eye(d_in).to(like)).cpu().double() - bias).T, bias


def cross_moments(twin: Twin, tap: str, original: Hidden, compressed: Hidden) -> Stage:
    """Moments of x' with x at one tap. Neither stream moves. A single window is both held out and fitted on."""
    held_out = held_out_windows(original.windows)
    fitted_on = ~held_out if original.windows > 1 else held_out

    def of(positions: Sequence[int]) -> Stage:
        out: Stage | None = None
        for position in positions:
            windows, clean = original.pieces[position].windows, original.at(position)
            # Both layers with the original's arguments: masks and positions are the same.
            args, kwargs = original.calls[tuple(clean.shape[:2])][twin.index]
            x = _read_at(tap, twin.layer, clean, args, kwargs)
            changed = _read_at(tap, twin.student, compressed.at(position), args, kwargs)
            sizes = changed.shape[-1], x.shape[-1]
            out = out or Stage(CrossMoments(*sizes), CrossMoments(*sizes))
            # OPT hands its MLP rows of tokens, without the windows
            x, changed = (rows.reshape(len(clean), -1, rows.shape[-1]) for rows in (x, changed))
            for part, some in ((out.fitted_on, fitted_on[windows]), (out.held_out, held_out[windows])):
                if some.any():
                    part.update(changed[some].flatten(0, 1), x[some].flatten(0, 1))
        assert out is not None  # no lane without a window
        return out

    return original.summed(Stage, of)


class _ReachedError(Exception):
    """The tap has read its input: what the layer would go on to compute is of no use."""


@torch.no_grad()
def _read_at(tap: str, layer: nn.Module, states: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a layer's tap reads when the layer reads `states`; the layer runs no further."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, read: tuple[Tensor, ...]) -> None:
        seen.append(read[0])
        raise _ReachedError

    handle = layer.get_submodule(tap).register_forward_pre_hook(stop)
    try:
        layer(states, *args, **kwargs)
    except _ReachedError:
        return seen[0]
    finally:
        handle.remove()
    raise AssertionError(f"{tap} was not reached")
