"""What a window begins with: the tokens that a tokenizer's own template puts in front of a text, such as Gemma's <bos>.

A model that was trained with such a token judges, and computes, badly without it: its attention rests on it.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

Bos: TypeAlias = Literal["auto"] | bool
BOS = "auto: what the tokenizer itself puts in front of a text; true: at least its beginning-of-sequence token; false: nothing"


def beginning(tokenizer: Any, bos: Bos = "auto") -> list[int]:
    """The token ids in front of every window; most tokenizers add one or none. What a template adds behind a text is left out,
    since a window is not where a text ends.

    Raises ValueError where `bos` is true and the tokenizer has no beginning-of-sequence token.
    """
    if bos is False:
        return []
    # The template itself has no name that all tokenizers share: what it adds to a text is seen by comparing.
    plain, whole = _ids(tokenizer, "a", special=False), _ids(tokenizer, "a", special=True)
    starts = range(len(whole) - len(plain) + 1)
    added = whole[: next((start for start in starts if whole[start : start + len(plain)] == plain), 0)]
    if added or bos == "auto":
        return added
    if getattr(tokenizer, "bos_token_id", None) is None:
        raise ValueError("bos: true given, but the tokenizer has no beginning-of-sequence token; give auto or false")
    return [int(tokenizer.bos_token_id)]


def tokenize(tokenizer: Any, text: str, bos: Bos = "auto") -> tuple[list[int], list[int]]:
    """(what stands in front, the text's own token ids)."""
    return beginning(tokenizer, bos), _ids(tokenizer, text, special=False)


def begins_with(tokenizer: Any, bos: Bos = "auto") -> list[str]:
    """As a report says it: the tokens in words."""
    return [str(token) for token in tokenizer.convert_ids_to_tokens(beginning(tokenizer, bos))]


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    # verbose=False: a whole text is longer than the context by design, and is cut by the caller.
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
