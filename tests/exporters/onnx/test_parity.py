"""What counts as a disagreement between a graph and torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import tiny_checkpoint, tiny_model

from compress.loading.quantizer import from_pretrained
from compress.novella import FOLDER
from exporters.onnx.parity import PASSAGE, breach, passage_tokens, reference
from exporters.onnx.runtime import CPU


def measured(**changes: Any) -> dict[str, Any]:
    """A comparison without a difference, with changes."""
    agreement = {
        "max_abs_difference": 0.0,
        "torch_rounding": 0.0,
        "max_abs_logit": 10.0,
        "cases": {"prompt": 0.0},
        "greedy_tokens": 64,
        "greedy_equal": 64,
        "margin_at_first_difference": None,
    }
    return agreement | changes


@pytest.mark.parametrize("difference", [1.1e-3, math.nan, math.inf])
def test_logits_beyond_the_tolerance_are_a_breach(difference: float) -> None:
    assert breach(measured(max_abs_difference=0.9e-3), CPU, "float32", 1e-4) is None
    assert "above 0.001" in str(breach(measured(max_abs_difference=difference), CPU, "float32", 1e-4))


def test_small_logits_are_judged_absolutely() -> None:
    assert breach(measured(max_abs_difference=0.9e-4, max_abs_logit=0.1), CPU, "float32", 1e-4) is None


def test_another_greedy_token_is_a_breach_in_float32_and_a_tie_in_half_precision() -> None:
    other = measured(greedy_equal=5, margin_at_first_difference=1e-6)
    assert "part after 5 of 64" in str(breach(other, CPU, "float32", 1e-4))
    assert breach(other, CPU, "float16", 1e-4) is None
    assert "part after 5" in str(breach(other | {"margin_at_first_difference": 1.0}, CPU, "float16", 1e-4))


def test_half_precision_may_lose_what_torch_loses() -> None:
    lost = measured(max_abs_difference=0.5, torch_rounding=0.4)
    assert breach(lost, CPU, "float16", 2e-2) is None
    assert breach(lost | {"max_abs_difference": 0.7}, CPU, "float16", 2e-2)


def test_providers_that_choose_their_own_precision_are_not_judged() -> None:
    assert breach(measured(max_abs_difference=1.0), "CoreMLExecutionProvider", "float32", 1e-4) is None


def test_the_reference_of_a_half_model_is_float32_on_its_weights(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    half = from_pretrained(folder, dtype=torch.float16)
    exact = from_pretrained(folder, dtype=torch.float16).float()
    given = reference(half, range(1, 97))
    with torch.no_grad():
        expected = exact(torch.from_numpy(given.prompts[:1])).logits.numpy()
    np.testing.assert_allclose(given.logits[0][:1], expected, atol=1e-5)
    assert 1e-4 < given.rounding < 0.5
    assert reference(exact, range(1, 97)).rounding == 0


@pytest.mark.parametrize("positions", [12, 70, 128])
def test_short_contexts_are_not_exceeded(positions: int) -> None:
    given = reference(tiny_model("gpt2", n_positions=positions), range(1, 97))
    assert given.prompts.shape[1] + given.greedy.shape[1] <= positions
    assert given.greedy.shape[1] >= min(64, positions - 2)


def test_tokens_are_text_where_there_is_a_tokenizer_and_seeded_noise_where_not(tmp_path: Path) -> None:
    from compress.data import load_tokenizer

    front, tokens = passage_tokens(FOLDER, 4096)
    assert front == []  # novella's tokenizer adds nothing
    assert load_tokenizer(str(FOLDER)).decode(tokens) == PASSAGE
    assert passage_tokens(FOLDER, 50) == passage_tokens(tmp_path, 50)  # a tokenizer that is not this model's
    assert max(passage_tokens(tmp_path, 50)[1]) < 50


def test_every_row_begins_as_the_model_reads_texts() -> None:
    given = reference(tiny_model("llama"), range(1, 97), front=[90, 91])
    for row, mask, last in zip(given.prompts, given.mask, given.further[0][1][:, 0], strict=True):
        first, *_ = np.flatnonzero(mask)
        assert row[first:][:2].tolist() == [90, 91]
        text = [*row[first + 2 :].tolist(), int(last)]
        assert text == [*range(text[0], text[0] + len(text))]  # without a gap to what is read next
        assert not mask[:first].any()
    assert given.mask.sum(axis=1).tolist() == [24, 18, 12]
