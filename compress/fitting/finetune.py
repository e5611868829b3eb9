"""Fine-tuning after the fit: all replaced modules together, against the original model's next-token distribution.

Block refinement mends one layer at a time and cannot trade one layer's error against another's; this can. The price: unlike
every other stage of a fit it holds the original and the compressed model in memory, whole, in float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress import data
from compress.checkpoint.files import hash_json
from compress.checkpoint.units import Artefact, hash_tensors, read_unit, write_unit
from compress.fitting.assemble import load_variant
from compress.fitting.descent import copies, descend, drawn, gradients_of, held_out_split, mean_over_all, put_back
from compress.methods.base import Replacement
from compress.parallel.lanes import MicroBatch
from compress.parallel.world import world
from compress.recipe import Finetuning
from compress.stream.model import StreamedModel

FORMAT = 5  # raise when the content of the state files changes meaning
EVALUATIONS = 20  # how often the held-out windows are measured and the state is saved
PATIENCE = 2  # measurements in a row without a new best: then back to the best, with half the learning rate
WARM_UP = 0.1  # share of the steps over which the learning rate rises


@dataclass
class _Run:
    """The state of a run after `step` steps, and the best of it so far."""

    step: int
    best_loss: float
    start_loss: float
    rate: float  # what the scheduled learning rate is multiplied by
    misses: int  # measurements since the last best
    best: list[Tensor]


def finetune(
    model: StreamedModel,
    replacements: Sequence[Replacement],
    tokens: Tensor,
    options: Finetuning,
    seed: int,
    folder: Path,
    tick: Callable[[], None],
) -> list[Replacement]:
    """Adam on the replaced modules' parameters; loss KL(original‖compressed) per token of `tokens` (windows, length).

    The held-out windows are measured EVALUATIONS times; PATIENCE of these without a new best put the best parameters back and
    halve the learning rate: a model that lost little needs a far smaller one than a model that lost much. The best are kept,
    the start included. The state is kept in `folder`: an interrupted run goes on from its last measurement and ends with the
    same bytes.
    """
    teacher, student = (load_variant(model, some).to(model.device) for some in ([], replacements))
    # Empty tensors hold a place; integers are indices.
    names = {name for r in replacements for name, value in r.tensors.items() if value.is_floating_point() and value.numel()}
    student.requires_grad_(False)
    trained = {name: parameter for name, parameter in student.named_parameters() if name in names}
    parameters = [parameter.requires_grad_(True) for parameter in trained.values()]
    train, held = held_out_split(len(tokens), options.held_out, torch.Generator().manual_seed(seed))
    pieces = model.compute.own_pieces(*tokens.shape)
    optimiser = torch.optim.Adam(parameters, lr=options.lr)
    fingerprint = hash_json(
        [
            FORMAT,
            model.shards.fingerprint(),  # the teacher
            data.token_hash(tokens),
            options.model_dump(),
            seed,
            sorted(trained),
            hash_tensors({name: parameter.detach() for name, parameter in trained.items()}),
        ]
    )
    file = folder / f"{fingerprint[:12]}.safetensors"
    there = world().agreed(lambda: read_unit(file, fingerprint, only=()) is not None)
    run = _resumed(file, fingerprint, parameters, optimiser) if there else None
    if run is None:
        loss = _held_out(teacher, student, tokens, held, pieces)  # measured before a step is made: the start may be the best
        run = _Run(0, loss, loss, 1.0, 0, copies(parameters))
    # The bar counts the steps that an earlier run made.
    for _ in range(run.step):
        tick()
    every = max(1, options.steps // EVALUATIONS)
    while run.step < options.steps:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + run.step)  # each step's own: resuming needs no state
        rows = drawn(train, options.batch, generator)
        optimiser.param_groups[0]["lr"] = options.lr * run.rate * _schedule((run.step + 1) / options.steps)
        losses = _losses(teacher, student, tokens, rows, pieces)
        descend(optimiser, parameters, gradients_of(parameters, losses, model.compute.lanes))
        run.step += 1
        if run.step % every == 0 or run.step == options.steps:
            loss = _held_out(teacher, student, tokens, held, pieces)
            if loss < run.best_loss:
                run.best_loss, run.misses, run.best = loss, 0, copies(parameters)
            else:
                run.misses += 1
            if run.misses == PATIENCE:
                run.rate, run.misses = run.rate / 2, 0
                # Adam's own state stays as it is.
                put_back(parameters, run.best)
            if world().first:
                _save(file, fingerprint, run, parameters, optimiser)
        tick()
    note = {"finetune_kl_before": run.start_loss, "finetune_kl_after": run.best_loss}
    return [_with(r, dict(zip(trained, run.best, strict=True)), note) for r in replacements]


def _schedule(progress: float) -> float:
    """Linear warm-up, then cosine to zero; `progress` in (0, 1]."""
    return progress / WARM_UP if progress < WARM_UP else 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def _losses(
    teacher: Any, student: Any, tokens: Tensor, rows: Tensor, pieces: Sequence[MicroBatch]
) -> dict[int, Callable[[], Tensor]]:
    """The share in the mean KL over the windows `rows` of each lane of this process that has any of them."""

    def share(mine: Tensor) -> Tensor:
        return _divergence(teacher, student, tokens[mine]).sum() / len(rows)

    out: dict[int, Callable[[], Tensor]] = {}
    for lane, group in itertools.groupby(pieces, lambda piece: piece.lane):
        own = list(group)
        mine = rows[(rows >= own[0].windows.start) & (rows < own[-1].windows.stop)]
        if len(mine):
            out[lane] = partial(share, mine)
    return out


def _divergence(teacher: Any, student: Any, rows: Tensor) -> Tensor:
    """KL(teacher‖student) of the next-token distributions, nats per token, of each of `rows` (windows, length)."""
    rows = rows.to(student.device)
    with torch.no_grad():
        wanted = teacher(input_ids=rows, use_cache=False).logits.log_softmax(-1)
    given = student(input_ids=rows, use_cache=False).logits.log_softmax(-1)
    # KL(p‖q) = Σ p (log p − log q), p the teacher.
    divergence = (wanted.exp() * (wanted - given)).sum(-1).mean(-1)
    if not bool(torch.isfinite(divergence).all()):
        raise RuntimeError("finetune: the loss is not finite; lower finetune.lr")
    return divergence


@torch.no_grad()
def _held_out(teacher: Any, student: Any, tokens: Tensor, held: Tensor, pieces: Sequence[MicroBatch]) -> float:
    by_window: list[float] = []
    for piece in pieces:
        mine = held[(held >= piece.windows.start) & (held < piece.windows.stop)].sort().values
        if len(mine):
            by_window += _divergence(teacher, student, tokens[mine]).tolist()
    return mean_over_all(by_window)


def _save(file: Path, fingerprint: str, run: _Run, parameters: list[nn.Parameter], optimiser: torch.optim.Adam) -> None:
    tensors = {}
    for i, (parameter, best) in enumerate(zip(parameters, run.best, strict=True)):
        state = optimiser.state[parameter]
        tensors |= {f"{i}.now": parameter.detach(), f"{i}.best": best}
        # Adam's moments and step count: without them a resumed run would take other steps.
        tensors |= {f"{i}.{key}": state[key] for key in ("step", "exp_avg", "exp_avg_sq")}
    metadata = {field.name: getattr(run, field.name) for field in fields(run) if field.name != "best"}
    write_unit(file, Artefact(tensors, metadata), fingerprint)


def _resumed(file: Path, fingerprint: str, parameters: list[nn.Parameter], optimiser: torch.optim.Adam) -> _Run | None:
    """Put the saved state of an interrupted run back; None where there is none."""
    saved = read_unit(file, fingerprint)
    if saved is None:
        return None
    for i, parameter in enumerate(parameters):
        parameter.data.copy_(saved.tensors[f"{i}.now"])
        optimiser.state[parameter] = {key: saved.tensors[f"{i}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    return _Run(**saved.metadata, best=[saved.tensors[f"{i}.best"] for i in range(len(parameters))])


def _with(replacement: Replacement, best: dict[str, Tensor], note: dict[str, float]) -> Replacement:
    """The replacement with its trained tensors; those that were float64 are again, to be stored in the model's dtype."""
    # Kept dense: nothing of it was trained.
    if not replacement.specs:
        return replacement
    tensors = {name: best[name].to(value.dtype) if name in best else value for name, value in replacement.tensors.items()}
    return replace(replacement, tensors=tensors, report=tuple({**row, **note} for row in replacement.report))
