"""What refinement and fine-tuning have in common: windows held out, clipped Adam steps, and the best parameters so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CLIP = 1.0  # norm of all gradients together


def held_out_split(windows: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(indices to train on, indices held out) of some windows, drawn at random; a single window is both."""
    order = torch.randperm(windows, generator=generator)
    held = order[: max(1, int(windows * share))]
    return (order[len(held) :] if windows > 1 else order), held


def descend(optimiser: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], loss: Tensor) -> None:
    """One step along the clipped gradient of a loss."""
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, CLIP)
    optimiser.step()


def copies(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The parameters' values as they are now."""
    return [parameter.detach().clone() for parameter in parameters]


def put_back(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Give parameters values that `copies` took."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
