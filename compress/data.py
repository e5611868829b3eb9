"""Token windows for calibration and evaluation, from the packaged text, a file or a hub dataset: same arguments, same windows.

source ──read_text──► text ──tokenizer──► ids ──windows──► (n, length), what the tokenizer puts in front included
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.beginning import tokenize
from compress.novella import FOLDER
from compress.texts import DEMO, Role, TextSource, read_text

if TYPE_CHECKING:
    from torch import LongTensor, Tensor
    from transformers import PreTrainedTokenizerBase

Sampling = Literal["random", "contiguous"]


def resolve_model(name: str) -> str:
    """The packaged folder for the alias "novella"; any other name (folder, hub id) unchanged; `./novella` is your own."""
    return str(FOLDER) if name == DEMO else name


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, a hub id or "novella".

    A folder that declares `TokenizersBackend` gets its tokenizer.json as it stands. AutoTokenizer would rebuild it by type,
    for a qwen2 model with another pre-tokenizer, and so split some words into other tokens than the model was trained on.

    Raises FileNotFoundError where there is no tokenizer.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    name = resolve_model(str(path))
    try:
        declared = get_tokenizer_config(name, revision=revision).get("tokenizer_class")
        if declared == "TokenizersBackend":
            return PreTrainedTokenizerFast.from_pretrained(name, revision=revision or "main")
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except Exception as error:  # of a stranger's files: tokenizers raises a bare Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise FileNotFoundError(
            f"no tokenizer for {path!r}; give {DEMO!r}, a folder with tokenizer.json, or a hub id ({reason})"
        ) from error


def windows(
    ids: Sequence[int],
    length: int,
    sequences: int | None,
    seed: int = 0,
    sampling: Sampling = "contiguous",
    prefix: Sequence[int] = (),
) -> LongTensor:
    """Windows (n, length) of a token sequence in text order; a last partial window is left out.

    Each is `prefix` and then the next length − len(prefix) tokens of `ids`.
    "random" draws `sequences` of them without replacement; "contiguous" takes the first `sequences`, at most.
    None takes all. Raises ValueError where there are too few tokens.

    >>> windows(range(10), length=3, sequences=None).tolist()
    [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    """
    import torch

    own = length - len(prefix)  # tokens of the text in a window
    if own < 1:
        raise ValueError(f"length: {length} given, and {len(prefix)} tokens stand in front of the text; give a longer window")
    available = len(ids) // own
    needed = 1 if sequences is None or sampling == "contiguous" else sequences
    if available < needed:
        raise ValueError(
            f"the text gives {len(ids)} tokens; {needed} window{'s' * (needed > 1)} of {length} need {needed * own}: "
            f"lower length or sequences{f' (at most {available})' if available else ''}, or give a longer text"
        )
    chosen = range(available)
    if sequences is not None:
        chosen = _drawn(available, sequences, seed) if sampling == "random" else chosen[:sequences]
    table = torch.tensor(ids[: available * own], dtype=torch.long).view(available, own)[list(chosen)]
    front = torch.tensor(prefix, dtype=torch.long).expand(len(table), -1)
    return torch.cat([front, table], dim=1)  # type: ignore[return-value]


def calibration_tokens(source: TextSource, tokenizer: PreTrainedTokenizerBase) -> LongTensor:
    """Windows drawn at random from the calibration text, (sequences, length)."""
    return _tokens(source, tokenizer, "calibration", "random")


def unseen_tokens(source: TextSource, tokenizer: PreTrainedTokenizerBase, most: int) -> LongTensor:
    """At most `most` windows of the calibration text that `calibration_tokens` did not draw, in text order, (n, length).

    None where calibration takes all.
    """
    every = _tokens(source.model_copy(update={"sequences": None}), tokenizer, "calibration", "contiguous")
    chosen = range(len(every)) if source.sequences is None else _drawn(len(every), source.sequences, source.seed)
    rest = sorted(set(range(len(every))).difference(chosen))
    # Another seed: with the first one the draw would follow that of the calibration windows.
    return every[sorted(random.Random(source.seed + 1).sample(rest, min(most, len(rest))))]  # type: ignore[return-value]


def _drawn(available: int, sequences: int, seed: int) -> list[int]:
    """Indices of the windows that random sampling takes, in text order."""
    return sorted(random.Random(seed).sample(range(available), sequences))


def evaluation_tokens(source: TextSource, tokenizer: PreTrainedTokenizerBase) -> LongTensor:
    """All windows of the evaluation text in order, or the first `sequences`, (n, length)."""
    return _tokens(source, tokenizer, "evaluation", "contiguous")


def positions(config: Any) -> int | None:
    """How many tokens a model reads at once, None where there is no limit; `config` is the transformers one."""
    found = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    # Dynamic frequencies are made for what is longer.
    return found if isinstance(found, int) and rope.get("rope_type") != "dynamic" else None


def check_length(length: int, config: Any, what: str) -> None:
    """Raises ValueError for windows that are longer than a model has positions; `config` is the transformers one."""
    if (most := positions(config)) is not None and length > most:
        raise ValueError(f"{what}: windows of {length} tokens, and the model has {most} positions; lower length to that")


def check_tokens(tokens: LongTensor, config: Any, tokenizer: PreTrainedTokenizerBase, what: str) -> LongTensor:
    """The same windows. Raises ValueError naming a token that the model's embeddings have no row for."""
    vocabulary = int(config.vocab_size)
    if (largest := int(tokens.max())) >= vocabulary:
        raise ValueError(
            f"{what}: token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}) is beyond the model's vocabulary of "
            f"{vocabulary}; give the tokenizer that belongs to it, or resize its embeddings"
        )
    return tokens


def token_hash(tokens: Tensor) -> str:
    """sha256 of the shape and the values (little-endian int64): equal hashes mean the same windows."""
    values = tokens.detach().cpu().long().numpy().astype("<i8")
    return hashlib.sha256(f"{list(values.shape)}:".encode() + values.tobytes()).hexdigest()


def _tokens(source: TextSource, tokenizer: PreTrainedTokenizerBase, role: Role, sampling: Sampling) -> LongTensor:
    text = read_text(source, role, tokenizer)
    try:
        prefix, ids = tokenize(tokenizer, text, source.bos)
        return windows(ids, source.length, source.sequences, source.seed, sampling, prefix)
    except ValueError as error:
        raise ValueError(f"{role} from {source.text!r}: {error}") from None
