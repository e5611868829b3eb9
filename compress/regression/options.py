"""What searches for expressions, how long, and for which."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

HELD_OUT = 0.2  # the share of rows held out where the caller gives none


class EngineOptions(BaseModel):
    """What searches, how long, and for which expressions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["operon", "sparse", "pysr"] = Field(
        default="operon",
        description="operon: genetic programming; sparse: greedy regression on a library, a second; pysr: needs Julia",
    )
    evaluations: PositiveInt | None = Field(
        default=200_000, description="budget per output; the same budget and seed give the same expressions"
    )
    seconds: PositiveFloat | None = Field(default=None, description="time limit per output; not reproducible")
    iterations: PositiveInt | None = Field(default=None, description="pysr: niterations, instead of evaluations")
    operators: tuple[str, ...] = Field(
        default=("add", "sub", "mul", "square"),
        description="functions the search may use; div, exp and log are what grows off the calibrated range",
        min_length=1,
    )
    complexities: dict[str, PositiveInt] = Field(default={}, description="complexity of an operator, where it is not 1")
    max_length: int = Field(default=50, ge=3, description="most nodes of a searched tree")
    population: int = Field(default=1000, ge=10, description="operon: individuals")
    optimizer_iterations: int = Field(
        default=4, ge=0, description="operon: Levenberg–Marquardt steps for a new tree's constants; 0 tunes none"
    )
    terms: int = Field(default=64, ge=0, description="most terms of the sparse path, which operon also tries first; 0: not")
    certify: bool = Field(default=True, description="keep only expressions proved finite over the calibrated range")
    threads: PositiveInt | None = Field(
        default=None, exclude=True, description="outputs searched at the same time, by default one per core; changes no result"
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        # An engine's file names its operators without importing the package behind it, which may be missing.
        known = sorted(import_module(f"compress.regression.engines.{self.name}").OPERATORS)
        for name in (*self.operators, *self.complexities):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{self.name} has no operator {name!r}{hint} It has {', '.join(known)}")
        if self.name != "sparse" and self.evaluations is None and self.seconds is None and self.iterations is None:
            raise ValueError("give the search a budget: `evaluations` (reproducible) or `seconds`")
        if self.iterations is not None and self.name != "pysr":
            raise ValueError(f"`iterations` are PySR's; give the {self.name} engine `evaluations`")
        if self.name == "sparse" and self.terms == 0:
            raise ValueError("the sparse engine needs `terms` of 1 or more")
        return self
