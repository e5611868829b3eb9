"""What a benchmark says of the outputs: perplexity on each text, distance from the baseline, and greedy text side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import LongTensor, Tensor

from compress import data
from compress.beginning import begins_with, tokenize
from compress.evaluating.perplexity import Model, compare, logits_of
from compress.measuring.runtimes import Runner

WINDOWS = 64  # of a text that does not say how many
REMEMBERED_BYTES = 2**29  # logits of the baseline that are kept instead of computed once more for every variant
BATCH = 4


@dataclass(frozen=True)
class Text:
    """One evaluation text, cut into windows (n, length) by the tokenizer of one baseline."""

    name: str
    source: data.TextSource
    tokens: LongTensor
    begins_with: list[str]

    def to_json(self) -> dict[str, Any]:
        """What identifies the windows; the text itself, and where it lies, stay here."""
        source = self.source.model_dump(mode="json", exclude_unset=True)
        if Path(self.source.text).exists():
            source["text"] = Path(self.source.text).name
        return {
            "name": self.name,
            "source": source,
            "windows": self.tokens.shape[0],
            "length": self.tokens.shape[1],
            "begins_with": self.begins_with,
            "sha256": data.token_hash(self.tokens),
        }


def read_texts(sources: Mapping[str, data.TextSource], tokenizer: Any, config: Any) -> list[Text]:
    """Tokenize the texts; one that does not say how many windows gives at most `WINDOWS`.

    Raises ValueError where windows are longer than the model's positions, or a token is beyond its vocabulary; `config` is the
    transformers one.
    """
    out = []
    for name, given in sources.items():
        source = given if given.sequences is not None else given.model_copy(update={"sequences": WINDOWS})
        data.check_length(source.length, config, f"text {name!r}")
        tokens = data.check_tokens(data.evaluation_tokens(source, tokenizer), config, tokenizer, f"text {name!r}")
        out.append(Text(name, source, tokens, begins_with(tokenizer, source.bos)))
    return out


class Remembered:
    """A model whose logits are computed once per batch, as long as all of them fit in `REMEMBERED_BYTES`."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._known: dict[bytes, Tensor] = {}
        self._bytes = 0

    def __call__(self, ids: Tensor) -> Tensor:
        key = ids.numpy().tobytes()
        if key not in self._known:
            logits = logits_of(self.model, ids)
            if self._bytes + logits.nbytes > REMEMBERED_BYTES:
                return logits
            self._known[key] = logits
            self._bytes += logits.nbytes
        return self._known[key]


def score(model: Model, reference: Model, texts: Sequence[Text], tick: Callable[[], None]) -> dict[str, dict[str, Any]]:
    """{text: nll, perplexity, tokens, kl, top1_agreement} of a model against the baseline."""
    out = {}
    for text in texts:
        out[text.name] = compare(model, reference, text.tokens, batch=BATCH)
        tick()
    return out


def greedy(runner: Runner, prompt: Sequence[int], tokens: int) -> list[int]:
    """The `tokens` most likely tokens after a prompt."""
    generation = runner.start(np.asarray([prompt], dtype=np.int64), tokens)
    out = [int(generation.newest[0, 0])]
    for _ in range(tokens - 1):
        runner.step(generation)
        out.append(int(generation.newest[0, 0]))
    return out


def prompt_tokens(prompt: str | None, texts: Sequence[Text], tokenizer: Any, most: int) -> list[int]:
    """The prompt's tokens; without one, the beginning of the first text. Raises ValueError for an empty prompt."""
    if prompt is None:
        return texts[0].tokens[0, :most].tolist()
    front, ids = tokenize(tokenizer, prompt, texts[0].source.bos if texts else "auto")
    if not ids:
        raise ValueError("the prompt is empty; give some text, or none for the beginning of the first evaluation text")
    return front + ids[-max(1, most - len(front)) :]
