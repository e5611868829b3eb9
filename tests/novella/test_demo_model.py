"""novella: the packaged folder is what its card says, and its texts are its own samples."""

import hashlib
import re

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from compress import data
from compress.novella import FOLDER, sample

CARD = (FOLDER / "README.md").read_text()


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(data.resolve_model("novella"), dtype=torch.float32).eval()


def perplexity(model, tokens):
    with torch.no_grad():
        logits = torch.cat([model(batch).logits[:, :-1] for batch in tokens.split(16)])
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).exp().item()


def test_the_card_counts_the_parameters(model):
    assert f"{model.num_parameters():,}" == "1,633,408"
    assert "| parameters | 1,633,408" in CARD


def test_weights_are_stored_in_bfloat16():
    assert AutoModelForCausalLM.from_pretrained(FOLDER).dtype == torch.bfloat16


@pytest.mark.parametrize("role", sample.SEEDS)
def test_texts_are_the_ones_the_card_records(role):
    content = (FOLDER / "text" / f"{role}.txt").read_bytes()
    assert f"| {role}.txt | {len(content)} | {hashlib.sha256(content).hexdigest()} |" in CARD


@pytest.mark.parametrize("role", sample.SEEDS)
def test_the_script_draws_the_texts(role):
    """The first documents, drawn in a batch of another size than the packaged ones were."""
    content = (FOLDER / "text" / f"{role}.txt").read_text(encoding="utf-8")
    first, _ = sample.text(role, count=3)
    assert len(first) > 1000
    assert content.startswith(first.removesuffix("\n") + sample.SEPARATOR)


def test_sampling_is_by_the_models_own_probabilities(model):
    """The nll the script reports for each drawn token is the one transformers gives it."""
    tokens, nll = sample.documents(seed=5, numbers=range(4), length=64)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)).logits[:, :-1]
    expected = -logits.double().log_softmax(-1).gather(-1, torch.from_numpy(tokens)[:, 1:, None])[..., 0]
    np.testing.assert_allclose(nll, expected.numpy(), atol=2e-4)


def test_first_tokens_follow_the_distribution(model):
    """400 draws: each of the likeliest tokens within five standard deviations of its expected count."""
    n = 400
    drawn, _ = sample.documents(seed=7, numbers=range(n), length=2)
    with torch.no_grad():
        p = model(torch.zeros(1, 1, dtype=torch.long)).logits[0, -1].double().softmax(-1).numpy()
    counts = np.bincount(drawn[:, 1], minlength=len(p))
    likely = np.argsort(p)[-10:]
    assert (np.abs(counts - n * p)[likely] < 5 * np.sqrt(n * p * (1 - p))[likely]).all()


def test_a_document_ends_where_the_model_ends_it():
    assert sample.cut([0, 5, 6, 0, 7]) == [5, 6]
    assert sample.cut([0, 5, 6]) == [5, 6]


@pytest.mark.parametrize("role", sample.SEEDS)
def test_texts_survive_the_tokenizer(role):
    text = (FOLDER / "text" / f"{role}.txt").read_bytes().decode()
    tokenizer = data.load_tokenizer("novella")
    assert tokenizer.decode(tokenizer(text, verbose=False)["input_ids"]) == text


def test_the_tokenizer_is_the_stored_one():
    text = 'In 1839, it\'s  said:\n\n"Ah!" -- no\tcafe\u0301s.'
    stored = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    assert data.load_tokenizer("novella")(text)["input_ids"] == stored.encode(text).ids


@pytest.mark.parametrize(
    ("role", "tokens_of"), [("calibration", data.calibration_tokens), ("evaluation", data.evaluation_tokens)]
)
def test_perplexity_is_the_one_on_the_card(model, role, tokens_of):
    """On the first 64 windows, within about four standard errors of the figure recorded for all of them."""
    recorded = float(re.search(rf"\| {role}\.txt in windows \| [\d,]+ \| ([\d.]+) \|", CARD)[1])
    tokens = tokens_of(data.TextSource(text="novella", seed=0), data.load_tokenizer("novella"))
    assert perplexity(model, tokens[:64]) == pytest.approx(recorded, rel=0.1)
