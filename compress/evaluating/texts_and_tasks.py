"""A model on named texts and tasks: what `compress eval` measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from compress import data
from compress.beginning import Bos, begins_with
from compress.evaluating.clamping import measured
from compress.evaluating.tasks import evaluate_tasks
from compress.loading.quantizer import from_pretrained
from compress.progress import Progress


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
    tokenizer = data.load_tokenizer(name)
    out: dict[str, Any] = {}
    if texts:
        loaded = from_pretrained(name, dtype=torch.float32).eval()
        for text in texts:
            source = data.TextSource(text=text, length=length, sequences=sequences, bos=bos)
            out[text] = measured(loaded, data.evaluation_tokens(source, tokenizer), progress)
            out[text]["begins_with"] = begins_with(tokenizer, bos)
    if tasks:
        out["tasks"] = evaluate_tasks(name, tasks, limit)
    return out
