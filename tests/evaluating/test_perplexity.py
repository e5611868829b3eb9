"""Perplexity and distances against numpy in float64; zero distance to oneself; a broken model is never averaged away."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from checkpoints import tiny_model
from scipy.special import log_softmax

from compress.evaluating import perplexity as evaluate
from compress.evaluating.perplexity import compare, perplexity


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen2")


@pytest.fixture(scope="module")
def other():
    return tiny_model("qwen2", seed=7)


@pytest.fixture
def tokens():
    return torch.randint(0, 97, (5, 12), generator=torch.Generator().manual_seed(0))


def _oracle(model, tokens):
    """Log-probabilities (n, length − 1, vocabulary) in float64, one window at a time."""
    with torch.no_grad():
        return np.stack([log_softmax(model(w[None]).logits[0, :-1].double().numpy(), axis=-1) for w in tokens])


def test_perplexity_is_the_exponential_of_the_mean_nll(model, tokens):
    logs = _oracle(model, tokens)
    nll = -np.take_along_axis(logs, tokens[:, 1:, None].numpy(), axis=-1).mean()
    got = perplexity(model, tokens)
    assert got["nll"] == pytest.approx(nll, rel=1e-6)
    assert got["perplexity"] == pytest.approx(math.exp(nll), rel=1e-6)
    assert got["tokens"] == 5 * 11


def test_kl_and_agreement_match_their_definitions(model, other, tokens):
    p, q = _oracle(other, tokens), _oracle(model, tokens)
    got = compare(model, other, tokens)
    assert got["kl"] == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-5)
    assert got["top1_agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert {k: got[k] for k in ("nll", "perplexity", "tokens")} == perplexity(model, tokens)


def test_a_model_is_at_distance_zero_from_itself(model, tokens):
    got = compare(model, model, tokens)
    assert got["kl"] == 0.0
    assert got["top1_agreement"] == 1.0


def test_kl_is_not_symmetric(model, other, tokens):
    assert compare(model, other, tokens)["kl"] != pytest.approx(compare(other, model, tokens)["kl"], rel=1e-3)


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_batches_and_pieces_do_not_change_the_result(model, other, tokens, batch, monkeypatch):
    whole = compare(model, other, tokens, batch=5)
    monkeypatch.setattr(evaluate, "SOFTMAX_ELEMENTS", 97 * 3)  # 3 rows at a time: pieces end inside windows
    assert compare(model, other, tokens, batch=batch) == pytest.approx(whole, rel=1e-6)


def test_default_batch_keeps_the_logits_small(tokens, monkeypatch):
    monkeypatch.setattr(evaluate, "LOGITS_ELEMENTS", 2 * 12 * 2**16)
    sizes = []

    def uniform(ids):
        sizes.append(ids.shape[0])
        return torch.zeros(*ids.shape, 97)

    assert perplexity(uniform, tokens)["perplexity"] == pytest.approx(97)
    assert sizes == [2, 2, 1]


def test_a_callable_that_returns_numpy_will_do(model, tokens):
    def as_numpy(ids):
        with torch.no_grad():
            return model(ids).logits.numpy(), "present"

    assert compare(as_numpy, model, tokens)["kl"] == 0.0


def test_half_precision_logits_are_scored_in_float32(tokens):
    logits = torch.zeros(5, 12, 97, dtype=torch.bfloat16)
    assert perplexity(lambda ids: logits[: len(ids)], tokens, batch=5)["nll"] == pytest.approx(math.log(97), rel=1e-6)


def test_a_non_finite_loss_names_its_window(model, tokens):
    def broken(ids):
        logits = model(ids).logits.clone()
        logits[(ids == tokens[3]).all(dim=1)] = float("nan")
        return logits

    with pytest.raises(RuntimeError, match="window 3"):
        perplexity(broken, tokens, batch=2)


def test_a_loss_beyond_any_perplexity_is_an_error(tokens):
    def certain_of_nothing_right(ids):
        logits = torch.zeros(*ids.shape, 97)
        return logits.scatter_(2, torch.roll(ids, -1, dims=1)[..., None], -1e6)

    with pytest.raises(RuntimeError, match="beyond any perplexity"):
        perplexity(certain_of_nothing_right, tokens)


@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (7,)])
def test_windows_without_a_prediction_are_refused(model, shape):
    with pytest.raises(ValueError, match="at least one window of at least 2 tokens"):
        perplexity(model, torch.zeros(shape, dtype=torch.long))


def test_progress_is_told_of_every_batch(model, tokens):
    seen = []

    def progress(description, total):
        return lambda: seen.append((description, total))

    perplexity(model, tokens, batch=2, progress=progress)
    assert seen == [("perplexity", 3)] * 3
