"""Statistics of an original layer and its compressed twin, each on its own stream of hidden states."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compress.numerics.statistics import CrossMoments
from compress.stream.hidden import Hidden

HELD_OUT = 8  # every eighth window is held out


def cross_moments(
    layer: nn.Module, student: nn.Module, tap: str, index: int, original: Hidden, compressed: Hidden
) -> tuple[CrossMoments, CrossMoments]:
    """Moments of x' with x at one tap: of the windows a refit may use, and of those held out. Neither stream moves.

    A single window is both.
    """
    seen: dict[str, Tensor] = {}

    def keep(key: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[key] = args[0]

        return hook

    handles = [
        layer.get_submodule(tap).register_forward_pre_hook(keep("x")),
        student.get_submodule(tap).register_forward_pre_hook(keep("x'")),
    ]
    windows = sum(state.shape[0] for state in original.states)
    held_out = torch.arange(windows) % HELD_OUT == HELD_OUT - 1
    if not held_out.any():  # fewer windows than that: the last one
        held_out[-1] = True
    moments: tuple[CrossMoments, CrossMoments] | None = None
    start = 0
    with torch.no_grad():
        for clean, shifted in zip(original.states, compressed.states, strict=True):
            args, kwargs = original.calls[tuple(clean.shape[:2])][index]
            layer(clean, *args, **kwargs)
            student(shifted, *args, **kwargs)
            size = seen["x'"].shape[-1], seen["x"].shape[-1]
            moments = moments or (CrossMoments(*size), CrossMoments(*size))
            held = held_out[start : start + clean.shape[0]]
            start += clean.shape[0]
            # OPT hands its MLP rows of tokens, without the windows
            rows = [seen[key].reshape(len(held), -1, seen[key].shape[-1]) for key in ("x'", "x")]
            for part, chosen in zip(moments, (~held if windows > 1 else held, held), strict=True):
                if chosen.any():
                    part.update(rows[0][chosen].flatten(0, 1), rows[1][chosen].flatten(0, 1))
    for handle in handles:
        handle.remove()
    assert moments is not None
    return moments
