"""Does the graph compute what the model computes? Logits in every way a cache is used, and greedy tokens, per provider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compress.beginning import tokenize
from exporters.onnx.runtime import CPU, CUDA, MODEL_FILE, OnnxModel, positions
from exporters.onnx.trace import takes_positions

GREEDY_TOKENS = 64
# Of max(1, |logit|), and in half precision on top of what torch itself loses there.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
_ENFORCED = (CPU, CUDA)  # CoreML and DirectML may round to half precision as they please: measured, not judged
_PROMPT, _CHUNK = 24, 5

# Read by the checkpoint's own tokenizer: parity on tokens that occur, not on noise.
PASSAGE = (
    "The captain had said nothing since morning. He stood by the rail, his coat buttoned against the wind, and looked at the "
    'grey line where the coast ought to have been. "We shall be late," said the mate at last, "and there will be questions." '
    "In 1847 the same ship had crossed in nineteen days; this time it was the thirtieth, and the water was nearly gone."
)


@dataclass(frozen=True)
class Reference:
    """What torch computes: the same calls as the graph gets, in order, with its logits, and its greedy continuation."""

    prompts: NDArray[np.int64]  # (B, T), padded on the left
    mask: NDArray[np.int64]  # (B, T)
    further: tuple[tuple[str, NDArray[np.int64]], ...]  # one token per row, then a chunk, on the cache
    logits: tuple[NDArray[np.float32], ...]  # of the prompts, then of each further call
    greedy: NDArray[np.int64]  # (1, GREEDY_TOKENS)
    margins: NDArray[np.float32]  # how far the best token was ahead of the second, per greedy step
    rounding: float  # max |Δlogit| of torch in half precision against float32 on the same weights; 0 for a float32 model


def reference(model: Any, tokens: Sequence[int], front: Sequence[int] = ()) -> Reference:
    """Run `model` on windows of `tokens`, which are repeated where they are too few, each with `front` before it.

    Two programs in half precision may both be right and far apart. So float32 arithmetic on a half model's weights is the
    reference (the model is left in it), and what its own half precision loses is the measure of what a graph may lose.
    """
    config = model.config
    context = int(getattr(config, "max_position_embeddings", None) or 1024)
    # Prompt, chunk and continuation within the context; at least two tokens.
    length = max(2, min(_PROMPT, context - GREEDY_TOKENS, context - _CHUNK - 1))
    width, pad = length + 1 + _CHUNK, int(getattr(config, "pad_token_id", None) or 0)
    text = np.resize(np.asarray(tokens, np.int64), (3, width - len(front)))
    # The first row is whole, the second a quarter padding, the third half: padding, front, text.
    padding = (0, length // 4, length // 2)
    rows = [[*[pad] * n, *front, *row][:width] for n, row in zip(padding, text, strict=True)]
    ids = np.asarray(rows, np.int64)
    mask = (np.arange(length) >= np.asarray(padding)[:, None]).astype(np.int64)
    prompts = ids[:, :length]
    # One token, then several at once, each on the cache of what came before.
    further = (("step", ids[:, length : length + 1]), ("chunk", ids[:, length + 1 :]))
    calls = [prompts, *(new for _, new in further)]
    # In its own precision first: `float` changes the model in place.
    own = None if next(model.parameters()).dtype == torch.float32 else _torch_logits(model, calls, mask)
    logits = _torch_logits(model.float(), calls, mask)
    rounding = 0.0
    if own is not None:
        # At padded positions there is nothing to agree on.
        valid = [mask == 1, *(np.ones_like(new) == 1 for _, new in further)]
        rounding = max(_difference(a[v], b[v]) for a, b, v in zip(own, logits, valid, strict=True))
    greedy, margins = _torch_greedy(model, ids[:1, :length], min(GREEDY_TOKENS, context - length))
    return Reference(prompts, mask, further, tuple(logits), greedy, margins, rounding)


def compare(given: Reference, folder: Path, provider: str, *, file: str = MODEL_FILE) -> dict[str, Any]:
    """The graph in `folder` beside the reference: differences at unpadded positions, top-1 agreement, equal greedy tokens."""
    graph = OnnxModel(folder, provider, file=file)
    mask, cache, cases = given.mask, None, {}
    same = total = 0
    for (name, new), expected in zip((("left_padded", given.prompts), *given.further), given.logits, strict=True):
        mask = np.concatenate([mask, np.ones_like(new)], axis=1) if cache is not None else mask
        logits, cache = graph.forward(new, mask, cache)
        valid = mask[:, -new.shape[1] :] == 1
        if cache and name == "left_padded":  # the first row is not padded: the plain prompt
            cases["prompt"] = _difference(logits[0], expected[0])
        cases[name] = _difference(logits[valid], expected[valid])
        same += int((logits[valid].argmax(-1) == expected[valid].argmax(-1)).sum())
        total += int(valid.sum())
    tokens = graph.generate_greedy(given.prompts[:1], given.greedy.shape[1])
    differing = np.flatnonzero(tokens[0] != given.greedy[0])
    # Tokens that are equal before the first that is not.
    equal = int(differing[0]) if differing.size else tokens.shape[1]
    return {
        "max_abs_difference": max(cases.values()),
        "torch_rounding": given.rounding,
        "max_abs_logit": float(max(np.abs(a).max() for a in given.logits)),
        "cases": cases,
        "top1_agreement": same / total,
        "greedy_tokens": tokens.shape[1],
        "greedy_equal": equal,
        "greedy_distinct": len(set(given.greedy[0].tolist())),  # a model that repeats one token proves little
        "margin_at_first_difference": float(given.margins[equal]) if differing.size else None,
    }


def breach(measured: dict[str, Any], provider: str, dtype: str, tolerance: float) -> str | None:
    """What is wrong with a comparison, in a sentence with its numbers, or None.

    In half precision the limit is wider by what torch loses, and a greedy token may differ where two were equal within it.
    """
    if provider not in _ENFORCED:
        return None
    limit = tolerance * max(1.0, measured["max_abs_logit"]) + measured["torch_rounding"]
    found = []
    if not measured["max_abs_difference"] <= limit:  # NaN is no agreement
        cases = ", ".join(f"{name} {value:.3g}" for name, value in measured["cases"].items())
        found.append(f"logits differ by {measured['max_abs_difference']:.3g}, above {limit:.3g} ({cases})")
    margin = measured["margin_at_first_difference"]
    # Where both logits may be off by the limit, the second can overtake the first from twice as far.
    if margin is not None and not (dtype != "float32" and margin <= 2 * limit):
        of = f"{measured['greedy_equal']} of {measured['greedy_tokens']}"
        found.append(f"greedy tokens part after {of} (torch's margin there {margin:.3g})")
    return f"{provider}: {' and '.join(found)}" if found else None


def passage_tokens(checkpoint: Path, vocabulary: int) -> tuple[list[int], list[int]]:
    """(what its tokenizer puts in front, a short English passage) in the checkpoint's own tokens.

    Nothing in front of seeded random ids where it has no tokenizer that fits.
    """
    from compress.data import load_tokenizer

    if any(checkpoint.glob("tokenizer*")) or any(checkpoint.glob("vocab*")):
        front, ids = tokenize(load_tokenizer(str(checkpoint)), PASSAGE)
        if ids and max(front + ids) < vocabulary:
            return front, ids
    return [], np.random.default_rng(0).integers(0, vocabulary, 96).tolist()


def _difference(ours: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(ours - expected).max())


def _torch_logits(model: Any, calls: Sequence[NDArray[np.int64]], mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Logits of each call, on the cache of the calls before it."""
    logits, cache = [], None
    for new in calls:
        mask = np.concatenate([mask, np.ones_like(new)], axis=1) if cache is not None else mask
        out = _torch_step(model, new, mask, cache)
        cache = out.past_key_values
        logits.append(out.logits.float().numpy())
    return logits


def _torch_step(model: Any, ids: NDArray[np.int64], mask: NDArray[np.int64], cache: Any) -> Any:
    given = {"input_ids": torch.from_numpy(ids.copy()), "attention_mask": torch.from_numpy(mask)}
    if takes_positions(model):
        given["position_ids"] = torch.from_numpy(positions(mask)[:, -ids.shape[1] :].copy())
    with torch.no_grad():
        return model(**given, past_key_values=cache, use_cache=True)


def _torch_greedy(model: Any, ids: NDArray[np.int64], n: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    tokens, margins, cache, mask = [], [], None, np.ones_like(ids)
    for _ in range(n):
        out = _torch_step(model, ids, mask, cache)
        cache = out.past_key_values
        best = out.logits[:, -1].float().topk(2)
        ids = best.indices[:, :1].numpy()
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        tokens.append(ids)
        margins.append(float(best.values[0, 0] - best.values[0, 1]))
    return np.concatenate(tokens, axis=1), np.asarray(margins, np.float32)
