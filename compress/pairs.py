"""Statistics of an original layer and its compressed twin, each on its own stream of hidden states."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compress.numerics.statistics import CrossMoments
from compress.streaming import Hidden


def cross_moments(
    layer: nn.Module, student: nn.Module, tap: str, index: int, original: Hidden, compressed: Hidden
) -> CrossMoments:
    """Moments of x' with x at one tap over all windows; neither stream moves."""
    seen: dict[str, Tensor] = {}

    def keep(key: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[key] = args[0].reshape(-1, args[0].shape[-1])

        return hook

    handles = [
        layer.get_submodule(tap).register_forward_pre_hook(keep("x")),
        student.get_submodule(tap).register_forward_pre_hook(keep("x'")),
    ]
    moments: CrossMoments | None = None
    with torch.no_grad():
        for clean, shifted in zip(original.states, compressed.states, strict=True):
            args, kwargs = original.calls[tuple(clean.shape[:2])][index]
            layer(clean, *args, **kwargs)
            student(shifted, *args, **kwargs)
            moments = moments or CrossMoments(seen["x'"].shape[1], seen["x"].shape[1])
            moments.update(seen["x'"], seen["x"])
    for handle in handles:
        handle.remove()
    assert moments is not None
    return moments
