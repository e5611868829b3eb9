"""How a recipe's `rank:` becomes one rank per matrix."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from compress.numerics.rank import Form, break_even, rank_at, rank_explaining
from compress.reading import json_text

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


class RankRule(BaseModel):
    """How the ranks of a step are chosen: exactly one of the fields below. A bare integer in YAML means `rank`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Annotated[int, Field(ge=1)] | None = Field(default=None, description="the same rank for every target")
    keep: Fraction | None = Field(default=None, description="fraction of each target's parameters that remain, in (0, 1]")
    explained_variance: Fraction | None = Field(default=None, description="fewest components with this share, in (0, 1]")
    budget: Fraction | None = Field(
        None, description="fraction of all the step's targeted parameters that remain, shared out by `allocation`"
    )
    allocation: Literal["uniform", "global"] = Field(
        "global",
        description="of a budget: the same fraction everywhere, or all ranks together (wants importance: fisher)",
    )
    ranks: dict[str, int | None] | None = Field(default=None, description="one rank per module name; null leaves it dense")
    table: Path | None = Field(
        None, description="JSON file {module: rank}, as `compress search` writes it; null leaves a module dense"
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_integer(cls, value: object) -> object:
        # A bool is an int in Python, and `rank: true` is no rank.
        return {"rank": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> RankRule:
        rules = [name for name in type(self).model_fields if name != "allocation"]
        given = [name for name in rules if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(rules)}; given: {', '.join(given) or 'none'}")
        if "allocation" in self.model_fields_set and self.budget is None:
            raise ValueError(f"allocation belongs to budget; {given[0]} decides each rank by itself")
        return self

    @property
    def joint(self) -> bool:
        """Whether the ranks of a step's modules must be chosen together."""
        return self.budget is not None and self.allocation == "global"

    def uniform(self) -> RankRule | None:
        """The same budget as one fraction of every target; None where nothing is shared out."""
        return self.model_copy(update={"allocation": "uniform"}) if self.joint else None

    def settled(self) -> RankRule:
        """With the content of the table. Raises FileNotFoundError or ValueError where it is none."""
        return self if self.table is None else self.model_copy(update={"ranks": _read(self.table)})

    def known_before_fit(self, module: str, d_out: int, d_in: int, form: Form) -> int | None:
        """The rank as far as shapes alone decide it; None where the spectrum does. Raises ValueError above break-even."""
        if self.keep is not None or (self.budget is not None and not self.joint):
            return rank_at(self.keep or self.budget or 1.0, d_out, d_in, form)
        rank = self.rank if self.table is None and self.ranks is None else self._from_table(module)
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
        # A spectrum may ask for more than pays.
        if rank is None or (form == "plain" and rank > break_even(d_out, d_in)):
            return None
        return min(rank, spectrum.shape[0])

    def _from_table(self, module: str) -> int | None:
        ranks = self.settled().ranks or {}
        if module not in ranks:
            where = self.table or "ranks"
            raise ValueError(
                f"{where}: no rank for {module}; it has {len(ranks)} modules, the first {next(iter(ranks), 'none')}"
            )
        value = ranks[module]
        return None if value is None else int(value)


def _read(table: Path) -> dict[str, int | None]:
    if not table.is_file():
        raise FileNotFoundError(f"no rank table {str(table)!r}; `compress search` writes one")
    found = json_text.read(table)
    # `compress search` writes the ranks beside its measurements; a plain table is read as well.
    ranks = found.get("ranks", found) if isinstance(found, dict) else None
    if not isinstance(ranks, dict) or not all(r is None or (type(r) is int and r > 0) for r in ranks.values()):
        raise ValueError(f"{table} is no rank table; it maps module names to ranks of 1 or more, or null")
    return ranks
