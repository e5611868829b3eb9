"""Perplexity of a model, and its distance from a baseline, over windows of tokens.

    tokens (n, length) ──model──► logits (batch, length, vocabulary) ──► nll, perplexity; KL and top-1 agreement

Every position but a window's last predicts the next token, so n windows hold n·(length − 1) predictions, all of equal
weight. Logarithms and KL are in nats. A loss that is not finite is an error that names its window, never left out of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.progress import Progress, silent

Model = Callable[..., Any]  # a transformers model, or any callable: token ids (batch, length) → logits

LOGITS_ELEMENTS = 2**26  # logits of one batch at most: 256 MiB in float32
SOFTMAX_ELEMENTS = 2**23  # of these, this many are in float32 beside their logarithms at a time
MOST_WINDOWS = 16


def perplexity(model: Model, tokens: Tensor, batch: int | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """{"nll", "perplexity", "tokens"} of windows (n, length); "tokens" counts the predictions.

    `batch` is in windows; by default as many as keep the logits below `LOGITS_ELEMENTS`. Raises ValueError for windows
    without a prediction, RuntimeError naming the window whose loss is not finite.
    """
    total = 0.0
    for start, ids in _batches(model, tokens, batch, "perplexity", progress):
        logits = logits_of(model, ids)
        # Piece by piece in float32: a whole batch would take its logits' memory several times over.
        pieces = zip(_rows(logits), _targets(logits, ids), strict=True)
        losses = [functional.cross_entropy(rows.float(), chosen, reduction="none") for rows, chosen in pieces]
        total += _sum_finite(losses, ids, start)
    return _summary(total, tokens)


def compare(
    model: Model, baseline: Model, tokens: Tensor, batch: int | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """What `perplexity` says of `model`, and its distance from `baseline` over the same predictions.

    "kl" is the mean of KL(baseline‖model) in nats, "top1_agreement" the fraction of predictions whose most likely token
    is the same.
    """
    nll = kl = 0.0
    agree = 0
    for start, ids in _batches(model, tokens, batch, "compare", progress):
        logits, reference = logits_of(model, ids), logits_of(baseline, ids)
        if logits.shape != reference.shape:
            raise ValueError(
                f"logits of shape {tuple(logits.shape)} and {tuple(reference.shape)}: give models of one vocabulary"
            )
        targets, losses = _targets(logits, ids), []
        for rows, other, chosen in zip(_rows(logits), _rows(reference), targets, strict=True):
            # KL(p‖q) = Σ p (log p − log q), p the baseline, from log-softmax: no logarithm of a probability that rounded to 0.
            log_q = functional.log_softmax(rows.float(), dim=-1)
            # The two models may be on different devices.
            log_p = functional.log_softmax(other.to(rows.device).float(), dim=-1)
            losses.append(-log_q.gather(1, chosen[:, None])[:, 0])
            kl += float((log_p.exp() * (log_p - log_q)).sum(dim=-1).cpu().double().sum())
            agree += int((log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).sum())
        nll += _sum_finite(losses, ids, start)
    summary = _summary(nll, tokens)
    # KL is never negative; rounding of two nearly equal logarithms is.
    return {**summary, "kl": max(kl / summary["tokens"], 0.0), "top1_agreement": agree / summary["tokens"]}


def logits_of(model: Model, ids: Tensor) -> Tensor:
    """Logits (batch, length, vocabulary) of token ids (batch, length), from a transformers model or any callable."""
    # A cache would only take memory; other callables do not know the option.
    options = {"use_cache": False} if hasattr(model, "generation_config") else {}
    with torch.inference_mode():
        out = model(ids.to(_device(model)), **options)
    out = getattr(out, "logits", out)
    out = out[0] if isinstance(out, tuple) else out
    # ONNX Runtime answers in numpy arrays.
    return out if isinstance(out, Tensor) else torch.from_numpy(out)


def _device(model: Model) -> torch.device:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def _batches(
    model: Model, tokens: Tensor, batch: int | None, description: str, progress: Progress | None
) -> Iterator[tuple[int, Tensor]]:
    """(index of the first window, windows) of each batch."""
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)}; give at least one window of at least 2 tokens, (n, length)")
    if batch is None:
        # A model that does not tell its vocabulary is taken to have 65,536 tokens.
        vocabulary = int(getattr(getattr(model, "config", None), "vocab_size", 2**16))
        batch = min(MOST_WINDOWS, max(1, LOGITS_ELEMENTS // (tokens.shape[1] * vocabulary)))
    tick = (progress or silent)(description, math.ceil(tokens.shape[0] / batch))
    for start in range(0, tokens.shape[0], batch):
        yield start, tokens[start : start + batch]
        tick()


def _rows(logits: Tensor) -> Iterator[Tensor]:
    """Logits of the predictions, (rows, vocabulary), in pieces of bounded size."""
    yield from logits[:, :-1].reshape(-1, logits.shape[-1]).split(_rows_per_piece(logits))


def _targets(logits: Tensor, ids: Tensor) -> Iterator[Tensor]:
    """The tokens that were there, (rows,), in the same pieces."""
    yield from ids[:, 1:].reshape(-1).to(logits.device).split(_rows_per_piece(logits))


def _rows_per_piece(logits: Tensor) -> int:
    return max(1, SOFTMAX_ELEMENTS // logits.shape[-1])


def _sum_finite(losses: list[Tensor], ids: Tensor, start: int) -> float:
    """Sum of the losses of all predictions of a batch; RuntimeError naming the window where one is not finite."""
    by_window = torch.cat(losses).cpu().to(torch.float64).view(ids.shape[0], -1).sum(dim=1)  # MPS has no float64
    bad = torch.nonzero(~torch.isfinite(by_window))
    if len(bad):
        raise RuntimeError(
            f"the loss of window {start + int(bad[0])} is {float(by_window[bad[0]])}: the model overflows there; "
            "evaluate in float32, or fit again with more damping or another rank"
        )
    return float(by_window.sum())


def _summary(total: float, tokens: Tensor) -> dict[str, Any]:
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    nll = total / count
    try:
        return {"nll": nll, "perplexity": math.exp(nll), "tokens": count}
    except OverflowError:
        raise RuntimeError(f"the mean loss is {nll:.0f} nats per token, beyond any perplexity: the model is broken") from None
