"""Whether a standalone file computes what its checkpoint computes: logits and greedy tokens against transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-4  # of max |Δlogit| / max(1, max |logit|), in float32
GREEDY_TOKENS = 64
_PROMPT_TOKENS = 48
_TEXT = (
    "It was late in the year, and the road to the village lay under water. The two women who had come by the morning coach "
    "waited at the inn, one of them reading, the other at the window; neither had spoken since the horses were led away."
)


def compare(checkpoint: Path, folder: Path, dtype: str) -> dict[str, Any]:
    """Run the standalone model of `folder` and transformers' model of `checkpoint` on the same tokens, both in float32.

    The weights are rounded to `dtype` on both sides first, so that only the programs differ. Returns max_abs_logit_difference,
    max_abs_logit, greedy_tokens_compared and greedy_agreement (fraction). Raises RuntimeError beyond `TOLERANCE` or for another
    greedy token.
    """
    from transformers import AutoModelForCausalLM

    from compress.loading.quantizer import register

    register()
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval().float()
    _, ours = load_standalone(folder)
    ours.float()
    ids = prompt(checkpoint, theirs.config.vocab_size)
    with torch.inference_mode():
        expected = theirs(ids).logits
        got, _ = ours(ids)
        difference, largest = float((got - expected).abs().max()), float(expected.abs().max())
        positions = theirs.config.max_position_embeddings
        # As far as the model's positions reach.
        count = max(0, min(GREEDY_TOKENS, positions - ids.shape[1]))
        tokens, reference = greedy(ours, ids, count), greedy_transformers(theirs, ids, count)
    same = sum(a == b for a, b in zip(tokens, reference, strict=True))
    report: dict[str, Any] = {
        "max_abs_logit_difference": difference,
        "max_abs_logit": largest,
        "greedy_tokens_compared": count,
        "greedy_agreement": same / count if count else 1.0,
    }
    # `not <=` because a NaN must fail too
    if not difference <= TOLERANCE * max(1.0, largest) or same < count:
        raise RuntimeError(
            f"the standalone file does not compute what {checkpoint} computes: max |Δlogit| {difference:.3g} (allowed "
            f"{TOLERANCE:g} × {max(1.0, largest):.3g}), {same} of {count} greedy tokens agree; please report its config.json"
        )
    return report


def load_standalone(folder: Path) -> tuple[ModuleType, Any]:
    """The module that `export_torch` wrote into `folder`, and its model with the weights."""
    spec = importlib.util.spec_from_file_location("standalone_model", folder / "model.py")
    if spec is None or spec.loader is None or not (folder / "model.py").is_file():
        raise FileNotFoundError(f"{folder} has no model.py; run export_torch first")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.load(folder)


def prompt(checkpoint: Path, vocabulary: int) -> Tensor:
    """Real tokens (1, T) where the folder has a tokenizer, else seeded random ones."""
    if (checkpoint / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(_TEXT).ids[:_PROMPT_TOKENS]
        if ids and max(ids) < vocabulary:
            return torch.tensor([ids])
    return torch.randint(vocabulary, (1, _PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))


def greedy(model: Any, ids: Tensor, count: int) -> list[int]:
    """The likeliest token after another, with the standalone model's cache."""
    tokens: list[int] = []
    cache = None
    for _ in range(count):
        logits, cache = model(ids, cache)
        tokens.append(int(logits[0, -1].argmax()))
        ids = torch.tensor([[tokens[-1]]])
    return tokens


def greedy_transformers(model: Any, ids: Tensor, count: int) -> list[int]:
    """The same, with transformers' cache."""
    tokens: list[int] = []
    cache = None
    for _ in range(count):
        out = model(ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        tokens.append(int(out.logits[0, -1].argmax()))
        ids = torch.tensor([[tokens[-1]]])
    return tokens
