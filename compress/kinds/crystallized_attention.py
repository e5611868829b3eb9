"""Attention that reads its top position's value and averages a few dimensions of the values beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import model_validator
from torch import nn

from compress.kinds.contract import Kind, Place, Positive, Size, Work, asked
from compress.nn.attention import CrystallizedAttention, crystallize
from compress.source.family import Family, refuse
from compress.source.pieces import AttentionSource, Switch


class Crystallized(Kind):
    """The original attention with another attention function: `rank` 0 reads the top value alone, `head_dim` is as it was."""

    kind = "crystallized_attention"
    replaces = "attention"
    runtime = CrystallizedAttention
    wraps = True
    exempt: ClassVar[Mapping[str, str]] = {
        "plain": "every weight keeps its name and shape: without compress the original attention is loaded",
        "standalone:gemma2": "the standalone torch file has no crystallized attention with capped scores",
    }
    told = "reads its top value and averages few dimensions beside it"

    rank: Size
    head_dim: Positive

    @model_validator(mode="after")
    def _within_the_head(self) -> Self:
        if self.rank > self.head_dim:
            raise ValueError(f"rank {self.rank} given; allowed: 0 (top value) to head_dim = {self.head_dim}")
        return self

    def work(self, module: nn.Module, place: Place) -> Work:
        """As its module counts, the attention's own products included."""
        return Work(asked(module, place.context), attends=True)

    def torch_attention(self, family: Family, layer: int) -> AttentionSource:
        """The stock class with this layer's rank. Raises NotImplementedError for capped scores."""
        refuse(family.score_cap, "crystallized attention with capped scores", "it without a cap")
        return AttentionSource(argument=self.rank)

    @classmethod
    def torch_switch(cls) -> Switch:
        def attend(mask: str, scale: str) -> str:
            return f"crystallize({', '.join(['q', 'k', 'v', mask, 'self.averaged', *[scale] * bool(scale)])})"

        return Switch("averaged", "int | None = None", attend, (crystallize,))
