"""How a fit computes: windows that go through the model together, and the lanes that sums are cut into.

Both are part of a fit's identity: they say in which order numbers are added. How many processes share the work is not.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from compress.parallel.lanes import MicroBatch, cut
from compress.parallel.world import world

BATCH_TOKENS = 2048  # tokens per forward pass: enough to keep the matrix products busy, little enough to stay small


class Compute(BaseModel):
    """The recipe's section `compute`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    micro_batch: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description=f"windows that go through the model together; by default at most {BATCH_TOKENS:,} tokens of them",
    )
    lanes: Annotated[int, Field(ge=1, le=64)] = Field(
        default=8, description="parts that sums over the windows are cut into; at most so many processes share them"
    )

    def pieces(self, windows: int, length: int) -> list[MicroBatch]:
        """All micro-batches of some windows; where they are few, smaller ones, so that every lane has some."""
        together = self.micro_batch or max(1, min(BATCH_TOKENS // length, -(-windows // self.lanes)))
        return cut(windows, together, self.lanes)

    def own_pieces(self, windows: int, length: int) -> list[MicroBatch]:
        """The micro-batches of this process."""
        own = world().owned(self.lanes)
        return [piece for piece in self.pieces(windows, length) if piece.lane in own]
