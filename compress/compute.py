"""How a fit computes: on which device, in which dtype, which windows go through the model together, and in how many lanes.

All but the device are part of a fit's identity: they say how numbers are rounded, and in which order they are added. On which
device, and how many processes share the work, is not.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from compress.clock import present_devices
from compress.parallel.lanes import MicroBatch, cut
from compress.parallel.world import world
from compress.validation import checked

BATCH_TOKENS = 2048  # tokens per forward pass: enough to keep the matrix products busy, little enough to stay small


def on_device(name: str) -> torch.device:
    """The device of this name, as a recipe would give it. Raises ValueError where it is not here."""
    return checked(Compute, {"device": name}).on()


class Compute(BaseModel):
    """The recipe's section `compute`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$")] = Field(
        default="auto", description="auto (cuda where there is one, else mps, else cpu), cpu, cuda, cuda:1, mps"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="what layers are computed in; sums are in float64"
    )
    offload: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="hidden states wait in the host's memory, not the device's; auto: where they would take a quarter of that",
    )
    micro_batch: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description=f"windows that go through the model together; by default at most {BATCH_TOKENS:,} tokens of them",
    )
    lanes: Annotated[int, Field(ge=1, le=64)] = Field(
        default=8, description="parts that sums over the windows are cut into; at most so many processes share them"
    )

    def on(self) -> torch.device:
        """The device. Raises ValueError where it is not here."""
        present = present_devices()
        kind, _, index = self.device.partition(":")
        if kind == "auto":
            kind = next(name for name in ("cuda", "mps", "cpu") if name in present)
        if kind not in present:
            raise ValueError(f"compute.device: {self.device!r} is not here; present: {', '.join(present)}, or auto")
        if kind != "cuda":
            return torch.device(kind)
        # torchrun's processes on one host take a GPU each.
        count, number = torch.cuda.device_count(), int(index or os.environ.get("LOCAL_RANK", "0"))
        if number >= count:
            raise ValueError(f"compute.device: cuda:{number} is not here; there are cuda:0 to cuda:{count - 1}")
        return torch.device("cuda", number)

    def states_on(self, size: int) -> torch.device:
        """Where hidden states of `size` bytes wait for their turn."""
        device = self.on()
        if self.offload == "always" or device.type == "cpu":
            return torch.device("cpu")
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else torch.mps.recommended_max_memory()
        return torch.device("cpu") if self.offload == "auto" and size > free / 4 else device

    def order(self) -> dict[str, Any]:
        """What the bytes of a result depend on."""
        return self.model_dump(include={"dtype", "micro_batch", "lanes"})

    def pieces(self, windows: int, length: int) -> list[MicroBatch]:
        """All micro-batches of some windows; where they are few, smaller ones, so that every lane has some."""
        together = self.micro_batch or max(1, min(BATCH_TOKENS // length, -(-windows // self.lanes)))
        return cut(windows, together, self.lanes)

    def own_pieces(self, windows: int, length: int) -> list[MicroBatch]:
        """The micro-batches of this process."""
        own = world().owned(self.lanes)
        return [piece for piece in self.pieces(windows, length) if piece.lane in own]
