"""The second pass: later layers see what the earlier ones became, and each decoder layer is mended as a whole.

Two streams of hidden states move through the model together, x of the original and x' of the compressed one.
`propagate_error` refits each linear on x' with the original's outputs as targets (reduced-rank regression); `refine` then
optimises a layer's factors and biases for a few steps against the ORIGINAL layer's outputs, as AA-SVD does. One layer is
resident; each finished layer is a file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint.files import hash_json
from compress.checkpoint.units import Artefact, read_unit, write_unit
from compress.fitting.calibrate import Gradients
from compress.fitting.propagate import cross_moments
from compress.fitting.units import Unit
from compress.loading.modules import install, within
from compress.methods.base import Material, Method, Need, Replacement
from compress.numerics.correction import Target, best_correction
from compress.numerics.linalg import symmetric_sqrt
from compress.numerics.statistics import CrossMoments, Statistic
from compress.plan import ModuleSpec
from compress.recipe import Refinement
from compress.stream.hidden import Hidden
from compress.stream.model import StreamedModel

FORMAT = 2  # raise when the content of the layer files changes meaning
METRIC_DAMPING = 0.1  # of the mean gradient power: every direction of the residual stream counts a little


@dataclass(frozen=True)
class Part:
    """One unit of the layer at hand, with its rank decided, and what it is replaced by so far."""

    unit: Unit
    method: Method
    replacement: Replacement


@dataclass(frozen=True)
class SecondPass:
    """What the pass needs besides the streams."""

    model: StreamedModel
    propagate_error: bool
    refinement: Refinement | None
    storage_dtype: torch.dtype  # replacements are rounded to it before later layers see them
    seed: int
    work: Path
    gradients: Gradients

    def run(
        self, tokens: Tensor, batch: int, layers: Sequence[Sequence[Part]], source_hash: str, tick: Callable[[], None]
    ) -> list[list[Replacement]]:
        """Replacements by layer. Finished layers of an interrupted run are taken over."""
        original = self.model.embed(tokens, batch)
        compressed = Hidden([state.clone() for state in original.states], original.calls)
        out = []
        fingerprint = hash_json([FORMAT, source_hash, self.propagate_error, self.refinement])
        for index, parts in enumerate(layers):
            fingerprint = hash_json([fingerprint, [_identity(part) for part in parts]])
            with self.model.resident(index) as layer:
                out.append(self._layer(layer, index, parts, original, compressed, fingerprint))
            tick()
        return out

    def _layer(
        self, layer: nn.Module, index: int, parts: Sequence[Part], original: Hidden, compressed: Hidden, fingerprint: str
    ) -> list[Replacement]:
        prefix = self.model.architecture.layer(index) + "."
        file = self.work / "refined" / f"{index}.{fingerprint[:12]}.safetensors"
        done = read_unit(file, fingerprint)
        student = copy.deepcopy(layer)
        if done is None:
            parts = self._propagate(layer, student, index, parts, original, compressed) if self.propagate_error else parts
        for part in parts:
            self._install(student, part.replacement, prefix)
        name = self.model.architecture.layer(index)
        inputs = [state.clone() for state in original.states]
        original.advance(layer, index, name)
        if done is None:
            note: dict[str, Any] = {}
            if self.refinement is not None and parts:
                note = self._refine(student, index, parts, inputs, original, compressed)
            done = Artefact(self._tensors(student, parts, prefix), {"parts": [_described(p.replacement, note) for p in parts]})
            write_unit(file, done, fingerprint)
        replacements = [
            _finished(part.replacement, described, done.tensors)
            for part, described in zip(parts, done.metadata["parts"], strict=True)
        ]
        for replacement in replacements:
            self._install(student, replacement, prefix)
        compressed.advance(student, index, name)
        return replacements

    def _install(self, student: nn.Module, replacement: Replacement, prefix: str) -> None:
        """Put a replacement into the layer as the checkpoint will hold it: rounded, then in the stream's dtype."""
        find, put = within(student, prefix)
        types = {"stored_in": self.storage_dtype, "computed_in": self.model.dtype}
        install(replacement.specs, replacement.tensors, find=find, put=put, **types)

    def _tensors(self, student: nn.Module, parts: Sequence[Part], prefix: str) -> dict[str, Tensor]:
        state = student.state_dict()
        return {name: state[name.removeprefix(prefix)].clone() for part in parts for name in part.replacement.tensors}

    def _propagate(
        self, layer: nn.Module, student: nn.Module, index: int, parts: Sequence[Part], original: Hidden, compressed: Hidden
    ) -> list[Part]:
        """Refit the layer's linears in the order the layer runs them, each on the inputs that the ones before it now give."""
        architecture = self.model.architecture
        prefix = architecture.layer(index) + "."
        out = {id(part): part for part in parts}
        for roles in architecture.inputs:
            names = {architecture.module(index, role) for role in roles}
            stage = [
                part
                for part in parts
                if part.replacement.specs  # dense ones stay the original
                and part.unit.method.replaces == "linear"
                and all(_known_again(need) for need in part.method.needs(part.unit.group, architecture).values())
                and set(part.unit.group.modules) <= names
            ]
            if not stage:
                continue
            tap = architecture.roles[roles[0]]
            fitted_on, held_out = cross_moments(layer, student, tap, index, original, compressed)
            for part in stage:
                targets = self._targets(part, layer, index)
                self._install(student, part.replacement, prefix)
                before = self._error(student, targets, held_out, prefix)
                refitted = self._refit(part, targets, fitted_on, held_out, layer, index)
                self._install(student, refitted.replacement, prefix)
                after = self._error(student, targets, held_out, prefix)
                if not after < before:  # NaN is no gain
                    refitted = part
                    self._install(student, part.replacement, prefix)
                out[id(part)] = refitted
        return list(out.values())

    def _targets(self, part: Part, layer: nn.Module, index: int) -> dict[str, Target]:
        """What each module of a part gave on the original's inputs, weighed by the loss gradient where the method does."""
        material = Material(part.unit.group, self.model.architecture, self.model.layer_weights(index), {}, layer, self.seed)
        weighed = {
            n.input_of
            for n in part.method.needs(part.unit.group, self.model.architecture).values()
            if n.statistic == "gradient"
        }
        out = {}
        for module in part.unit.group.modules:
            weight, bias = material.linear(module)
            gradient = self.gradients.read(module) if module in weighed else None
            bias = weight.new_zeros(len(weight)) if bias is None else bias
            out[module] = Target(weight, bias, None if gradient is None else gradient.second_moment)
        return out

    def _error(self, student: nn.Module, targets: Mapping[str, Target], moments: CrossMoments, prefix: str) -> float:
        """What the modules now in the student miss of their targets, as the checkpoint will hold them: rounded."""
        total = 0.0
        for module, target in targets.items():
            weight, bias = affine(student.get_submodule(module.removeprefix(prefix)), target.weight.shape[1])
            total += target.error(weight, bias, moments)
        return total

    def _refit(
        self,
        part: Part,
        targets: Mapping[str, Target],
        fitted_on: CrossMoments,
        held_out: CrossMoments,
        layer: nn.Module,
        index: int,
    ) -> Part:
        """min E‖W x + b − (L R x' + b')‖²: the correction of each weight for x', decomposed under the metric of x'."""
        architecture = self.model.architecture
        weights = dict(self.model.layer_weights(index))
        for module, target in targets.items():
            free_bias = f"{module}.bias" in part.replacement.tensors
            _, weight, bias = best_correction(target, fitted_on, held_out, free_bias)
            weights[f"{module}.weight"] = weight.T if architecture.conv1d else weight
            if free_bias:
                weights[f"{module}.bias"] = bias
        statistics: dict[str, Statistic] = {}
        for key, need in part.method.needs(part.unit.group, architecture).items():
            gradient = self.gradients.read(need.input_of) if need.statistic == "gradient" else None
            statistics[key] = fitted_on.input if gradient is None else gradient
        material = Material(part.unit.group, architecture, weights, statistics, layer, self.seed)
        artefact = part.method.fit(material)
        return replace(part, replacement=part.method.replace(part.unit.group, artefact, architecture))

    def _refine(
        self, student: nn.Module, index: int, parts: Sequence[Part], inputs: list[Tensor], targets: Hidden, compressed: Hidden
    ) -> dict[str, Any]:
        """Adam on the replaced modules' parameters; the best on the held-out windows is kept, the start included."""
        options = self.refinement
        assert options is not None
        prefix = self.model.architecture.layer(index) + "."
        names = [n.removeprefix(prefix) for part in parts for n in part.replacement.tensors]
        parameters = [p for n, p in student.named_parameters() if n in names and p.numel()]
        if not parameters:
            return {}
        clean, shifted, wanted = (torch.cat(s) for s in (inputs, compressed.states, targets.states))
        windows = clean.shape[0]
        generator = torch.Generator().manual_seed(self.seed * 1000 + index)
        order = torch.randperm(windows, generator=generator)
        held = order[: max(1, int(windows * options.held_out))]
        train = order[len(held) :] if windows > 1 else order
        root = self._metric_root(index, wanted)
        call = _caller(student, index, targets)
        for parameter in student.parameters():
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimiser = torch.optim.Adam(parameters, lr=options.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.steps)

        def loss(rows: Tensor, states: Tensor) -> Tensor:
            return ((call(states[rows]) - wanted[rows]) @ root).square().sum(-1).mean()

        @torch.no_grad()
        def held_out() -> float:
            return sum(float(loss(rows, shifted)) * len(rows) for rows in held.split(options.batch)) / len(held)

        start = best = held_out()
        kept = [p.detach().clone() for p in parameters]
        for step in range(1, options.steps + 1):
            rows = train[torch.randint(len(train), (options.batch,), generator=generator)]
            split = round(options.batch * options.anchor)
            total = loss(rows[split:], shifted) * (1 - options.anchor)
            if split:
                total = total + loss(rows[:split], clean) * options.anchor
            optimiser.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            if step % max(1, options.steps // 10) == 0:
                now = held_out()
                if now < best:
                    best, kept = now, [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
                parameter.requires_grad_(False)
        return {"block_error_before": start, "block_error_after": best}

    def _metric_root(self, index: int, targets: Tensor) -> Tensor:
        """Root of the loss metric on the layer's output, scaled to mean 1, (d_model, d_model) in the stream's dtype."""
        size = targets.shape[-1]
        gradient = self.gradients.read(f"layer.{index}")
        metric = torch.eye(size, dtype=torch.float64)
        if gradient is not None:
            moment = gradient.second_moment
            metric = moment / moment.diagonal().mean() + METRIC_DAMPING * metric
        variance = float(targets.double().flatten(0, 1).var(dim=0).mean())
        return (symmetric_sqrt(metric)[0] / max(variance, 1e-30) ** 0.5 / size**0.5).to(self.model.dtype)


def _known_again(need: Need) -> bool:
    """Whether a statistic can be had on the inputs that the compressed layers give: moments of what a linear reads, and the
    gradient's, which are the first pass's.
    """
    return need.statistic == "gradient" or (need.statistic == "moments" and need.output_of is None)


@torch.no_grad()
def affine(module: nn.Module, d_in: int) -> tuple[Tensor, Tensor]:
    """(weight (d_out, d_in), bias (d_out,)) of a module that computes an affine map, float64: seen, not read."""
    dtype = next(module.parameters()).dtype
    bias = module(torch.zeros(1, d_in, dtype=dtype))[0].double()
    return (module(torch.eye(d_in, dtype=dtype)).double() - bias).T, bias


def _described(replacement: Replacement, note: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON half of a finished replacement: refitting may have changed its specs."""
    specs = [spec.model_dump(mode="json") for spec in replacement.specs]
    return {"specs": specs, "report": [{**row, **note} for row in replacement.report]}


def _finished(start: Replacement, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Replacement:
    """The replacement of a finished layer's file. Floats become float64, to be stored in the model's dtype, unless they began
    as explicit float32.
    """
    specs = tuple(ModuleSpec.model_validate(spec) for spec in described["specs"])
    mine = tuple(f"{spec.module}." for spec in specs)
    explicit = {name for name, value in start.tensors.items() if value.dtype == torch.float32}
    own = {name: value for name, value in tensors.items() if mine and name.startswith(mine)}
    stored = {k: v.double() if v.is_floating_point() and k not in explicit else v for k, v in own.items()}
    return replace(start, specs=specs, tensors=stored, report=tuple(described["report"]))


def _identity(part: Part) -> Any:
    """What a finished layer depends on, of one part: its first-pass factors and the method with its decided rank."""
    return [
        part.unit.group.modules,
        part.method.model_dump(mode="json"),
        [float(t.double().sum()) for t in part.replacement.tensors.values()],
    ]


def _caller(layer: nn.Module, index: int, hidden: Hidden) -> Callable[[Tensor], Tensor]:
    """The layer as a function of hidden states (batch, length, d_model) of any batch size."""
    arguments = next(iter(hidden.calls.values()))[index]

    def call(states: Tensor) -> Tensor:
        out = layer(states, *arguments[0], **{k: _first_row(v, states.shape[0]) for k, v in arguments[1].items()})
        return out[0] if isinstance(out, tuple) else out

    return call


def _first_row(value: Any, batch: int) -> Any:
    """Call arguments are equal for every window: take one row and let it broadcast, or repeat it."""
    if isinstance(value, tuple):
        return tuple(_first_row(v, batch) for v in value)
    if isinstance(value, Tensor) and value.ndim >= 2:
        return value[:1].expand(batch, *value.shape[1:])
    return value
