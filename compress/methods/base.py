"""What a method is: a frozen pydantic class whose fields are its YAML options, the statistics it needs, and a pure `fit`.

`fit` turns weights and statistics into an Artefact (the unit file; everything that is expensive), `replace` turns an artefact
into the specs and tensors of the Plan. What is cheap to decide again (a rank, a choice on a Pareto front) belongs in
`replace`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from compress.architecture import Architecture
from compress.checkpoint.units import Artefact
from compress.numerics.statistics import Statistic
from compress.plan import ModuleSpec
from compress.progress import Log


@dataclass(frozen=True)
class Need:
    """One statistic a method asks for: of the rows entering `input_of`, joined with the rows leaving `output_of` where given.

    "gradient" are the moments of the loss gradient at the output of `input_of`: they cost a backward pass. "residual" are the
    HeadMoments of what attention adds to the value of its top position, where `input_of` is a layer's attention.
    """

    input_of: str  # full module name
    output_of: str | None = None
    statistic: Literal["moments", "sample", "gradient", "residual"] = "moments"
    rows: int = 0  # sample size, for "sample"
    seed: int = 0


@dataclass(frozen=True)
class Group:
    """One unit of work: the modules of one layer that one call of `fit` replaces together."""

    name: str  # file name of the unit
    step: int
    layer: int
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Material:
    """What `fit` may read: tensors by full name, statistics by the method's own keys, the resident original layer in eval
    mode.
    """

    group: Group
    architecture: Architecture
    weights: Mapping[str, Tensor]
    statistics: Mapping[str, Statistic]
    layer: nn.Module
    seed: int = 0
    log: Log = field(default_factory=Log)  # of the searches for expressions

    def linear(self, module: str) -> tuple[Tensor, Tensor | None]:
        """Weight (d_out, d_in) and bias of a linear, float64, whichever way round the checkpoint stores it."""
        weight = self.weights[f"{module}.weight"].to(torch.float64)
        bias = self.weights.get(f"{module}.bias")
        return (weight.T if self.architecture.conv1d else weight), (None if bias is None else bias.to(torch.float64))


@dataclass(frozen=True)
class Replacement:
    """What goes into the checkpoint.

    Tensors are keyed by full parameter name; float64 ones are stored in the model's dtype, others as they are.
    """

    specs: tuple[ModuleSpec, ...]
    tensors: Mapping[str, Tensor]
    removed: tuple[str, ...]  # modules whose original tensors are dropped
    report: tuple[dict[str, Any], ...] = field(default_factory=tuple)  # one row per module: module, kind, rank, error …


@dataclass(frozen=True)
class Preview:
    """One row of `--dry-run`: what can be said of a module from shapes alone."""

    module: str
    shape: tuple[int, ...]
    before: int  # parameters
    after: int | None  # None where the spectrum or a search decides
    note: str = ""


class Method(BaseModel):
    """Base of all methods. One subclass per file in `compress/methods`, named in YAML by its file name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: ClassVar[str]  # paper, section or equation
    replaces: ClassVar[Literal["linear", "mlp", "attention"]]  # what one group is: linears, or a layer's MLP or attention
    decided_late: ClassVar[frozenset[str]] = frozenset()  # options that `fit` does not read: changing them refits nothing

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        """The statistics `fit` will find in `material.statistics`, by key."""
        raise NotImplementedError

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        """Rows for `--dry-run`, from the shapes of the original parameters. Raises ValueError for impossible options."""
        raise NotImplementedError

    def fit(self, material: Material) -> Artefact:
        """The expensive part; pure, deterministic under `material.seed`."""
        raise NotImplementedError

    def decide(self, artefacts: Sequence[Artefact]) -> list[Method]:
        """Of one step's finished units: the method of each, with what they decide together. Artefacts hold spectra only."""
        return [self] * len(artefacts)

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        """The cheap part: decisions, specs, tensors."""
        raise NotImplementedError
