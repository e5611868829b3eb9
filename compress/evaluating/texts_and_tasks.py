"""A model on named texts and tasks: what `compress eval` measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from compress import data
from compress.beginning import Bos, begins_with
from compress.checkpoint.config import load_config
from compress.evaluating.clamping import measured
from compress.evaluating.tasks import check_tasks, evaluate_tasks
from compress.loading.quantizer import from_pretrained
from compress.progress import Progress
from compress.validation import checked


def evaluate(
    folder: Path,
    texts: Sequence[str],
    tasks: Sequence[str],
    length: int,
    sequences: int | None,
    limit: int | None,
    bos: Bos,
    progress: Progress,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """{text: its perplexity and what its windows begin with, "tasks": {task: its accuracy}} in float32.

    Raises FileNotFoundError or ValueError for what is not there, RuntimeError where a loss is not finite.
    """
    # All that may be missing is looked for before a weight is read.
    asked, config = check_tasks(tasks, limit), load_config(folder)
    tokenizer = data.load_tokenizer(folder)
    sizes = {"length": length, "sequences": sequences, "bos": bos}
    sources = {text: checked(data.TextSource, {"text": text, **sizes}) for text in texts}
    windows = {}
    for text, source in sources.items():
        data.check_length(length, config, f"text {text!r}")
        windows[text] = data.check_tokens(data.evaluation_tokens(source, tokenizer), config, tokenizer, f"text {text!r}")
    model = from_pretrained(folder, dtype=torch.float32).eval().to(device)
    out: dict[str, Any] = {}
    for text, tokens in windows.items():
        out[text] = {**measured(model, tokens, progress), "begins_with": begins_with(tokenizer, bos)}
    if tasks:
        out["tasks"] = evaluate_tasks(model, tokenizer, asked, limit, progress)
    return out
