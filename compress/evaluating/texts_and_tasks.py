"""A model on named texts and tasks: what `compress eval` measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from compress import data
from compress.beginning import Bos, begins_with
from compress.evaluating.clamping import measured
from compress.evaluating.tasks import check_tasks, evaluate_tasks
from compress.loading.quantizer import from_pretrained
from compress.progress import Progress
from compress.validation import checked


def evaluate(
    model: str,
    texts: Sequence[str],
    tasks: Sequence[str],
    length: int,
    sequences: int | None,
    limit: int | None,
    bos: Bos,
    progress: Progress,
) -> dict[str, Any]:
    """{text: its perplexity and what its windows begin with, "tasks": {task: its accuracy}} in float32.

    Raises FileNotFoundError or ValueError for what is not there, RuntimeError where a loss is not finite.
    """
    name = data.resolve_model(model)
    # All that may be missing is looked for before a weight is read.
    check_tasks(tasks)
    tokenizer = data.load_tokenizer(name)
    sizes = {"length": length, "sequences": sequences, "bos": bos}
    sources = {text: checked(data.TextSource, {"text": text, **sizes}) for text in texts}
    windows = {text: data.evaluation_tokens(source, tokenizer) for text, source in sources.items()}
    out: dict[str, Any] = {}
    if texts:
        loaded = from_pretrained(name, dtype=torch.float32).eval()
        for text, tokens in windows.items():
            data.check_length(length, loaded.config, f"text {text!r}")
            data.check_tokens(tokens, loaded.config, tokenizer, f"text {text!r}")
        for text, tokens in windows.items():
            out[text] = {**measured(loaded, tokens, progress), "begins_with": begins_with(tokenizer, bos)}
    if tasks:
        out["tasks"] = evaluate_tasks(name, tasks, limit)
    return out
