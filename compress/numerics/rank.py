"""Rank rules: what each form costs, and how a recipe's `rank:` becomes one rank per matrix."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

Form = Literal["plain", "pivoted"]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


def break_even(d_out: int, d_in: int) -> float:
    """Rank at which the plain form stores as many numbers as the dense matrix."""
    return d_out * d_in / (d_out + d_in)


def parameters(rank: int, d_out: int, d_in: int, form: Form = "plain") -> int:
    """Numbers stored for one matrix at `rank`, biases aside.

    >>> parameters(10, 64, 32), parameters(10, 64, 32, "pivoted"), parameters(32, 64, 32, "pivoted") == 64 * 32
    (960, 860, True)
    """
    return rank * (d_out + d_in - (rank if form == "pivoted" else 0))


def rank_at(keep: float, d_out: int, d_in: int, form: Form = "plain") -> int:
    """Largest rank whose storage is at most `keep` of the dense matrix's, at least 1.

    >>> rank_at(0.5, 64, 64), rank_at(0.5, 64, 64, "pivoted"), rank_at(1.0, 64, 32, "pivoted")
    (16, 18, 32)
    """
    budget = keep * d_out * d_in
    if form == "plain":
        rank = math.floor(budget / (d_out + d_in) + 1e-9)
    else:  # smaller root of r² − (d_out + d_in) r + budget = 0
        total = d_out + d_in
        rank = math.floor((total - math.sqrt(max(total * total - 4 * budget, 0.0))) / 2 + 1e-9)
    return max(1, min(rank, d_out, d_in))


def rank_explaining(spectrum: Tensor, threshold: float) -> int:
    """Fewest leading components whose share of the spectrum's sum reaches `threshold`, at least 1."""
    share = spectrum.cumsum(0) / spectrum.sum().clamp_min(1e-300)
    return min(int((share < threshold - 1e-12).sum()) + 1, spectrum.shape[0])


class RankRule(BaseModel):
    """How the ranks of a step are chosen: exactly one of the fields below. A bare integer in YAML means `rank`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Annotated[int, Field(ge=1)] | None = Field(None, description="the same rank for every target")
    keep: Fraction | None = Field(None, description="fraction of each target's parameters that remain, in (0, 1]")
    explained_variance: Fraction | None = Field(None, description="fewest components that explain this share, in (0, 1]")
    table: Path | None = Field(None, description="JSON file {module: rank}, as `compress search` writes it; null leaves a module dense")

    @model_validator(mode="before")
    @classmethod
    def _bare_integer(cls, value: object) -> object:
        return {"rank": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> RankRule:
        given = sorted(self.model_fields_set)
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}; given: {', '.join(given) or 'none'}")
        return self

    def known_before_fit(self, module: str, d_out: int, d_in: int, form: Form) -> int | None:
        """The rank as far as shapes alone decide it; None where the spectrum does. Raises ValueError above break-even."""
        if self.keep is not None:
            return rank_at(self.keep, d_out, d_in, form)
        rank = self.rank if self.table is None else self._from_table(module)
        if rank is None:
            return None
        if rank > min(d_out, d_in):
            raise ValueError(f"{module}: rank {rank} given, at most min({d_out}, {d_in}) = {min(d_out, d_in)} is possible")
        if form == "plain" and rank > break_even(d_out, d_in):
            raise ValueError(
                f"{module}: rank {rank} in plain form stores more than the dense {d_out}×{d_in} matrix; "
                f"give at most {math.floor(break_even(d_out, d_in))}, or form: pivoted"
            )
        return rank

    def choose(self, module: str, d_out: int, d_in: int, form: Form, spectrum: Tensor) -> int | None:
        """The rank of one module, or None for dense: a rank whose storage exceeds the dense matrix never ships."""
        rank = self.known_before_fit(module, d_out, d_in, form)
        if self.explained_variance is not None:
            rank = rank_explaining(spectrum, self.explained_variance)
        if rank is None or (form == "plain" and rank > break_even(d_out, d_in)):
            return None
        return min(rank, spectrum.shape[0])

    def _from_table(self, module: str) -> int | None:
        assert self.table is not None
        ranks = json.loads(self.table.read_text())
        ranks = ranks.get("ranks", ranks)
        if module not in ranks:
            raise ValueError(f"{self.table}: no rank for {module}; it has {len(ranks)} modules, the first {next(iter(ranks), 'none')}")
        value = ranks[module]
        return None if value is None else int(value)
