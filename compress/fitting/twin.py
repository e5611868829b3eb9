"""A decoder layer and its compressed twin, and what each of them is replaced by."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.fitting.calibrate import Gradients
from compress.fitting.units import Unit
from compress.loading.modules import install, within
from compress.methods.base import Method, Replacement
from compress.plan import ModuleSpec
from compress.stream.model import StreamedModel

METRIC_DAMPING = 0.1  # of the mean gradient power: every direction of the residual stream counts a little


@dataclass(frozen=True)
class Part:
    """One unit of the layer at hand, with its rank decided, and what it is replaced by so far."""

    unit: Unit
    method: Method
    replacement: Replacement


@dataclass
class Twin:
    """The resident original `layer` and the `student`, a copy of it in which replacements are installed."""

    model: StreamedModel
    index: int
    layer: nn.Module
    storage_dtype: torch.dtype  # replacements are rounded to it before later layers see them
    gradients: Gradients
    seed: int
    student: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        # A copy: the original has to stay, to be the target and to move its own stream.
        self.student = copy.deepcopy(self.layer)

    @property
    def name(self) -> str:
        """The layer's name in the full model."""
        return self.model.architecture.layer(self.index)

    def inside(self, full_name: str) -> str:
        """A module's or parameter's name below the layer."""
        return full_name.removeprefix(f"{self.name}.")

    def install(self, replacement: Replacement) -> None:
        """Put a replacement into the student as the checkpoint will hold it: rounded, then in the stream's dtype."""
        find, put = within(self.student, f"{self.name}.")
        types = {"stored_in": self.storage_dtype, "computed_in": self.model.dtype, "device": self.model.device}
        install(replacement.specs, replacement.tensors, find=find, put=put, **types)


def output_metric(twin: Twin, parts: Sequence[Part], size: int) -> Tensor:
    """What an error of the layer's outputs costs the loss, (d_model, d_model) float64, mean 1, a floor in every direction; the
    identity where no method of its parts asks for gradients.
    """
    # By what this layer's methods ask for, not by what an earlier run may have left: the same recipe, the same bytes.
    needs = (part.method.needs(part.unit.group, twin.model.architecture).values() for part in parts)
    weighed = any(need.statistic == "gradient" for some in needs for need in some)
    gradient = twin.gradients.read(f"layer.{twin.index}") if weighed else None
    metric = torch.eye(size, dtype=torch.float64)
    if gradient is None or not float(gradient.second_moment.diagonal().mean()) > 0:  # or the loss felt nothing of the layer
        return metric
    moment = gradient.second_moment
    return moment / moment.diagonal().mean() + METRIC_DAMPING * metric


def described(replacement: Replacement, note: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON half of a refitted replacement, whose specs may be new ones; `note` goes into each row of its report."""
    specs = [spec.model_dump(mode="json") for spec in replacement.specs]
    return {"specs": specs, "report": [{**row, **(note or {})} for row in replacement.report]}


def recalled(start: Replacement, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Replacement:
    """The replacement that `described` and its tensors tell of, begun at `start`. Floats become float64, to be stored in the
    model's dtype, unless they began as explicit float32.
    """
    specs = tuple(ModuleSpec.model_validate(spec) for spec in description["specs"])
    mine = tuple(f"{spec.module}." for spec in specs)
    explicit = {name for name, value in start.tensors.items() if value.dtype == torch.float32}
    own = {name: value for name, value in tensors.items() if mine and name.startswith(mine)}
    stored = {k: v.double() if v.is_floating_point() and k not in explicit else v for k, v in own.items()}
    return replace(start, specs=specs, tensors=stored, report=tuple(description["report"]))
