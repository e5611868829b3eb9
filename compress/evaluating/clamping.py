"""How often symbolic surrogates hold a latent at the edge of its calibrated range, counted while a model is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from compress.evaluating.perplexity import perplexity
from compress.progress import Progress


@runtime_checkable
class Clamping(Protocol):
    """A module that holds its latents within their calibrated ranges, and says how often."""

    inputs: int
    clamp: bool

    def clamped_fraction(self, x: Tensor) -> Tensor:
        """Share of each latent's values that are held, x (..., d_model) → (inputs,)"""
        ...


def measured(model: nn.Module, tokens: Tensor, progress: Progress | None = None) -> dict[str, Any]:
    """`perplexity`, and where the model has surrogates that clamp, "clamped": the share of their latents that were held."""
    with counted(model) as share:
        found = perplexity(model, tokens, progress=progress)
        clamped = share()
    return found if clamped is None else {**found, "clamped": clamped}


@contextmanager
def counted(model: nn.Module) -> Iterator[Callable[[], float | None]]:
    """Counts inside the block; the share so far, of all latents of all surrogates and tokens, None where nothing clamps."""
    held = total = 0.0

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal held, total
        assert isinstance(module, Clamping)
        x: Tensor = args[0]
        # Weighted by how many latents there were: the last batch may be a smaller one.
        latents = x[..., 0].numel() * module.inputs
        held += float(module.clamped_fraction(x).mean()) * latents
        total += latents

    clamping = [module for module in model.modules() if isinstance(module, Clamping) and module.clamp]
    handles = [module.register_forward_pre_hook(count) for module in clamping]
    try:
        yield lambda: held / total if total else None
    finally:
        for handle in handles:
            handle.remove()
