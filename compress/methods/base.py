"""What a method is: a frozen pydantic class whose fields are its YAML options, the statistics it needs, and a pure `fit`.

`fit` turns weights and statistics into an Artefact (the unit file; everything that is expensive), `replace` turns an artefact
into the specs and tensors of the Plan. What is cheap to decide again (a rank, a choice on a Pareto front) belongs in
`replace`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from compress.regression.front import Front


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


@dataclass(frozen=True)
class Sees:
    """Through what a surrogate sees what it replaces, so that controls can be given the same: principal components read and
    written; and the rank and the metric of a linear map beside its expressions, where it has one.
    """

    inputs: int
    outputs: int
    affine: int | None = None
    importance: str = "fisher"


@dataclass(frozen=True)
class Ranks:
    """The ranks that a finished unit may take, for a search over them.

    `stored` gives the numbers stored at a rank, None is dense; `at` the method with that rank decided; `fraction` the largest
    rank that stores at most a fraction of dense. Units of equal `scale` have spectra that compare: they can share one budget.
    """

    candidates: tuple[int, ...]  # 1 and each tenth of break-even, ascending, as far as they store less than dense
    chosen: int | None  # what the method takes as it is
    stored: Callable[[int | None], int]
    at: Callable[[int | None], Method]
    fraction: Callable[[float], int]
    scale: object = None


@dataclass(frozen=True)
class Expressions:
    """The fronts of one layer's expressions, one per output, and the index of the candidate that is taken of each."""

    fronts: tuple[Front, ...]
    chosen: tuple[int, ...]


class Method(BaseModel):
    """Base of all methods. One subclass per file in `compress/methods/*`, named in YAML by its file name, or behind an entry
    point `compress.methods` of another package.

    What is not declared is not offered: a method without `saves` has no choice of layers, one without ranks no search for them.
    """

    # Frozen, since options are part of a unit's fingerprint; an option that does not exist is an error.
    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: ClassVar[str]  # paper, section or equation
    replaces: ClassVar[Literal["linear", "mlp", "attention"]]  # what one group is: linears, or a layer's MLP or attention
    decided_late: ClassVar[frozenset[str]] = frozenset()  # options that `fit` does not read: changing them refits nothing
    controls: ClassVar[tuple[str, ...]] = ()  # names under `evaluation.controls` that this method answers to
    equal_cost: ClassVar[bool] = False  # a control that can be had at any cost: `at_cost`
    saves: ClassVar[str | None] = None  # what a choice of layers saves by it; None: layers cannot be chosen for it
    has_ranks: ClassVar[bool] = False  # a search may choose them: `ranks`
    has_expressions: ClassVar[bool] = False
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)  # options for a tiny model: conformance runs each
    whole: ClassVar[Mapping[str, Any] | None] = None  # options, on top of an example, that leave the original as it was
    exempt: ClassVar[Mapping[str, str]] = {}  # conformance check, or "check:architecture" → why it does not hold here

    def needs(self, group: Group, architecture: Architecture) -> dict[str, Need]:
        """The statistics `fit` will find in `material.statistics`, by key."""
        raise NotImplementedError

    def preview(self, group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> Sequence[Preview]:
        """Rows for `--dry-run`, from the shapes of the original parameters. Raises ValueError for impossible options."""
        raise NotImplementedError

    def fit(self, material: Material) -> Artefact:
        """The expensive part; pure, deterministic under `material.seed`."""
        raise NotImplementedError

    def replace(self, group: Group, artefact: Artefact, architecture: Architecture) -> Replacement:
        """The cheap part: decisions, specs, tensors."""
        raise NotImplementedError

    def groups(self, modules: Sequence[str], architecture: Architecture) -> list[tuple[str, ...]]:
        """The targeted linears in the sets that are replaced together; by default each alone."""
        return [(module,) for module in modules]

    def decide(self, groups: Sequence[Group], artefacts: Sequence[Artefact]) -> list[Method]:
        """Of one step's finished units: the method of each, with what they decide together. Artefacts hold spectra only."""
        return [self] * len(artefacts)

    def settled(self) -> Method:
        """The same with the content of files that its options name, so that options say all that a result depends on."""
        return self

    def evenly(self) -> Method | None:
        """The same with an equal share for each unit of what a step's units share out; None where they share out nothing."""
        return None

    # Searches and choices

    def ranks(self, group: Group, artefact: Artefact) -> Ranks | None:
        """The ranks of a finished unit; None where `has_ranks` is false."""
        return None

    def budgeted(self, share: float) -> Method | None:
        """The same with all ranks of a step from one budget; None where they cannot be."""
        return None

    def layer_cost(
        self, made: Replacement, layer: int, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture
    ) -> tuple[int, int]:
        """(before, after) of one layer's replacement, in what it `saves`; `shapes` are the original's by parameter name."""
        raise NotImplementedError

    # Controls

    def sees(self) -> Sees | None:
        """What controls of the same shape are made from; None where the defaults do."""
        return None

    @classmethod
    def as_control(cls, control: str, of: Method) -> dict[str, Any]:
        """Options of this method as the control of that name of another one."""
        return {}

    @classmethod
    def at_cost(cls, multiply_adds: int, d_model: int, d_ff: int, architecture: Architecture) -> dict[str, Any]:
        """Options of this method that cost at least as many multiply-adds per token and layer: rounding is in its favour."""
        raise NotImplementedError

    # Expressions

    def expressions(self, artefact: Artefact, layer: int) -> Expressions | None:
        """The fronts of a finished unit; None for a method without expressions."""
        return None

    def simplest(self, artefact: Artefact, layer: int) -> dict[int, int]:
        """Complexity of the simplest expression, by output; empty where they are taken already, or some were picked by hand."""
        return {}

    def picked(self, layer: int, output: int, complexity: int) -> dict[str, Any]:
        """The options that change where the most accurate expression of at most `complexity` is taken at one output."""
        raise NotImplementedError
