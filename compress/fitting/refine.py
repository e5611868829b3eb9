"""Block refinement: a decoder layer's factors and biases, tuned against the original layer's outputs (AA-SVD)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from compress.fitting.descent import (
    copies,
    descend,
    drawn,
    gradients_of,
    held_out_split,
    mean_over_all,
    put_back,
)
from compress.fitting.twin import Part, Twin, output_metric
from compress.numerics.linalg import symmetric_sqrt
from compress.numerics.statistics import Spread
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
    # A seed for every layer, so that a resumed run draws what the first would have drawn.
    generator = torch.Generator().manual_seed(twin.seed * 1000 + twin.index)
    train, held = held_out_split(targets.windows, options.held_out, generator)
    windows = _Windows(inputs, compressed, targets, targets.through(student, twin.index), _metric_root(twin, parts, targets))
    student.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters, lr=options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.steps)
    start = best = mean_over_all(windows.held_out(held))
    kept = copies(parameters)
    for step in range(1, options.steps + 1):
        rows = drawn(train, options.batch, generator)
        split = round(options.batch * options.anchor)  # of these the inputs are the original's, lest it drifts from the text
        anchored = torch.randperm(options.batch, generator=generator) < split
        # Both kinds have their share of the loss, however few there are.
        shares = torch.where(anchored, options.anchor / max(split, 1), (1 - options.anchor) / max(options.batch - split, 1))
        losses = windows.losses(rows, anchored, shares)
        descend(optimiser, parameters, gradients_of(parameters, losses, twin.model.compute.lanes))
        schedule.step()
        if step % max(1, options.steps // MEASURED) == 0:
            now = mean_over_all(windows.held_out(held))
            if now < best:
                best, kept = now, copies(parameters)
    # The best seen, not the last.
    put_back(parameters, kept)
    student.requires_grad_(False)
    return {"block_error_before": start, "block_error_after": best}


@dataclass(frozen=True)
class _Windows:
    """This process's windows: what enters the layer in both streams, what should leave it, and the layer."""

    clean: Sequence[Tensor]  # (windows, length, d_model) each, as those of the other two
    shifted: Hidden
    wanted: Hidden
    layer: Callable[[Tensor], Tensor]
    root: Tensor

    def losses(self, rows: Tensor, anchored: Tensor, shares: Tensor) -> dict[int, Callable[[], Tensor]]:
        """Σ share · loss over the windows among `rows` of each lane that has any; anchored ones read clean states."""
        out: dict[int, Callable[[], Tensor]] = {}
        for lane, positions in self.wanted.by_lane():
            read: list[Tensor] = []
            wanted: list[Tensor] = []
            share: list[Tensor] = []
            for position in positions:
                windows = self.wanted.pieces[position].windows
                for at in ((rows >= windows.start) & (rows < windows.stop)).nonzero()[:, 0].tolist():
                    row = int(rows[at]) - windows.start
                    read.append((self.clean if anchored[at] else self.shifted.states)[position][row])
                    wanted.append(self.wanted.states[position][row])
                    share.append(shares[at])
            if read:
                out[lane] = partial(self._loss, torch.stack(read), torch.stack(wanted), torch.stack(share))
        return out

    def _loss(self, read: Tensor, wanted: Tensor, share: Tensor) -> Tensor:
        device = self.root.device
        errors = self._errors(read.to(device), wanted.to(device))
        return errors @ share.to(errors)

    @torch.no_grad()
    def held_out(self, held: Tensor) -> list[float]:
        """The loss of each held-out window."""
        out: list[float] = []
        for piece, read, wanted in zip(self.wanted.pieces, self.shifted.read(), self.wanted.read(), strict=True):
            windows = torch.arange(piece.windows.start, piece.windows.stop)
            if (chosen := torch.isin(windows, held)).any():
                out += self._errors(read[chosen], wanted[chosen]).tolist()
        return out

    def _errors(self, read: Tensor, wanted: Tensor) -> Tensor:
        """‖G^½ (y' − y)‖², mean over the tokens of each window."""
        return ((self.layer(read) - wanted) @ self.root).square().sum(-1).mean(-1)


def _metric_root(twin: Twin, parts: Sequence[Part], targets: Hidden) -> Tensor:
    """Root of the loss metric on the layer's output, scaled to mean 1, (d_model, d_model) in the stream's dtype."""

    def of(positions: Sequence[int]) -> Spread:
        spread = Spread(targets.size)
        for position in positions:
            spread.update(targets.states[position].flatten(0, 1))
        return spread

    # Over the variance of the outputs: their mean would have an error of about 1.
    spread = targets.summed(Spread, of)
    size, variance = len(spread.mean), float(spread.variance.mean())
    root = symmetric_sqrt(output_metric(twin, parts, size))[0] / max(variance, 1e-30) ** 0.5 / size**0.5
    return root.to(twin.model.dtype).to(twin.model.device)
