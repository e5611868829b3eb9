"""Block refinement: a decoder layer's factors and biases, tuned against the original layer's outputs (AA-SVD)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compress.fitting.descent import copies, descend, held_out_split, put_back
from compress.fitting.twin import Part, Twin, output_metric
from compress.numerics.linalg import symmetric_sqrt
from compress.recipe import Refinement
from compress.stream.hidden import Hidden

MEASURED = 10  # times that the held-out windows are measured


def refine(
    twin: Twin, options: Refinement, parts: Sequence[Part], inputs: Sequence[Tensor], targets: Hidden, compressed: Hidden
) -> dict[str, Any]:
    """Adam on the replaced modules' parameters; the best on the held-out windows is kept, the start included.

    `inputs` are the original stream's states before the layer, `targets` those after it, `compressed` the compressed stream's
    before it. Returns what the report says: the held-out error before and after, as a share of the outputs' variance.
    """
    student = twin.student
    names = [twin.inside(name) for part in parts for name in part.replacement.tensors]
    parameters = [p for name, p in student.named_parameters() if name in names and p.numel()]
    if not parameters:
        return {}
    # (windows, length, d_model) each.
    clean, shifted, wanted = (torch.cat(list(s)) for s in (inputs, compressed.states, targets.states))
    # A seed for every layer, so that a resumed run draws what the first would have drawn.
    generator = torch.Generator().manual_seed(twin.seed * 1000 + twin.index)
    train, held = held_out_split(clean.shape[0], options.held_out, generator)
    root = _metric_root(twin, parts, wanted)
    call = targets.through(student, twin.index)
    student.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters, lr=options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.steps)

    def loss(rows: Tensor, states: Tensor) -> Tensor:
        # ‖G^½ (y' − y)‖², mean over tokens.
        return ((call(states[rows]) - wanted[rows]) @ root).square().sum(-1).mean()

    @torch.no_grad()
    def held_out() -> float:
        return sum(float(loss(rows, shifted)) * len(rows) for rows in held.split(options.batch)) / len(held)

    start = best = held_out()
    kept = copies(parameters)
    for step in range(1, options.steps + 1):
        rows = train[torch.randint(len(train), (options.batch,), generator=generator)]
        split = round(options.batch * options.anchor)  # of these the inputs are the original's, lest it drifts from the text
        total = loss(rows[split:], shifted) * (1 - options.anchor)
        if split:
            total = total + loss(rows[:split], clean) * options.anchor
        descend(optimiser, parameters, total)
        schedule.step()
        if step % max(1, options.steps // MEASURED) == 0:
            now = held_out()
            if now < best:
                best, kept = now, copies(parameters)
    # The best seen, not the last.
    put_back(parameters, kept)
    student.requires_grad_(False)
    return {"block_error_before": start, "block_error_after": best}


def _metric_root(twin: Twin, parts: Sequence[Part], targets: Tensor) -> Tensor:
    """Root of the loss metric on the layer's output, scaled to mean 1, (d_model, d_model) in the stream's dtype."""
    size = targets.shape[-1]
    # Over the variance of the outputs: their mean would have an error of about 1.
    variance = float(targets.double().flatten(0, 1).var(dim=0).mean())
    return (symmetric_sqrt(output_metric(twin, parts, size))[0] / max(variance, 1e-30) ** 0.5 / size**0.5).to(twin.model.dtype)
