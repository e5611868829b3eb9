"""Built-in multiple choice: the score is the log-probability of the choice, the right model gets the right answers."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from checkpoints import tiny_model

from compress.evaluating import texts_and_tasks
from compress.evaluating.tasks import Question, check_tasks, read_questions, score_choice, score_questions
from compress.evaluating.texts_and_tasks import evaluate
from compress.loading.quantizer import from_pretrained
from compress.novella import FOLDER
from compress.progress import silent


class Letters:
    """One token a character: a tokenizer whose tokens can be counted by hand."""

    def __call__(self, text, **_):
        return {"input_ids": [ord(c) % 97 for c in text]}


def _loves(letter):
    """A model that gives `letter` probability 0.9 everywhere."""

    def model(ids):
        logits = torch.full((*ids.shape, 97), float(torch.log(torch.tensor(0.1 / 96))))
        logits[..., ord(letter) % 97] = float(torch.log(torch.tensor(0.9)))
        return logits

    return model


@pytest.fixture
def questions():
    return [Question(context="say", choices=(" aaaa", " b"), answer=1), Question(context="say", choices=(" c", " b"), answer=1)]


def test_a_score_is_the_sum_of_the_choice_tokens_log_probabilities():
    model = tiny_model("llama")
    ids = torch.tensor([Letters()("ask me")["input_ids"]])
    with torch.no_grad():
        logs = model(ids).logits.double().log_softmax(-1)[0]
    expected = sum(float(logs[i - 1, ids[0, i]]) for i in range(3, 6))
    assert score_choice(model, Letters(), "ask", " me") == pytest.approx(expected, rel=1e-6)


def test_spaces_that_end_the_context_belong_to_the_choice():
    model = tiny_model("llama")
    assert score_choice(model, Letters(), "ask ", "me") == score_choice(model, Letters(), "ask", " me")


def test_the_model_that_knows_is_right_and_the_other_is_not(questions):
    assert score_questions(_loves("b"), Letters(), questions)["accuracy"] == 1.0
    assert score_questions(_loves("a"), Letters(), questions)["accuracy"] < 1.0


def test_length_normalisation_favours_the_longer_choice():
    asked = [Question(context="say", choices=("aab", "b"), answer=0)]

    def even(ids):
        return torch.zeros(*ids.shape, 97)  # every token costs the same: the sum prefers the shorter, the mean is even

    got = score_questions(even, Letters(), asked)
    assert got["accuracy"] == 0.0
    assert got["accuracy_norm"] == 1.0


def test_jsonl_tasks_run_on_a_model_folder(tmp_path):
    file = tmp_path / "asked.jsonl"
    rows = [{"context": "It was a", "choices": [" dark", " qzx"], "answer": 0} for _ in range(3)]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    got = evaluate(FOLDER, [], [str(file)], 256, None, limit=2, bos="auto", progress=silent)["tasks"][str(file)]
    assert got == {"accuracy": 1.0, "accuracy_norm": 1.0, "stderr": 0.0, "questions": 2}


@pytest.fixture
def asked(tmp_path):
    """A file of one question in the letters of tiny models."""
    (tmp_path / "asked.jsonl").write_text(json.dumps({"context": "abc", "choices": ["d", "e"], "answer": 0}))
    return str(tmp_path / "asked.jsonl")


def test_texts_and_tasks_are_judged_by_one_model_and_both_are_heard_of(folders, asked, monkeypatch):
    loaded, heard = [], []

    def listen(description, total):
        heard.append(description)
        return lambda note="", done=1: None

    monkeypatch.setattr(texts_and_tasks, "from_pretrained", lambda *a, **k: loaded.append(a) or from_pretrained(*a, **k))
    text = str(folders("llama") / "text.txt")
    found = evaluate(folders("llama"), [text], [asked], 32, 2, limit=None, bos="auto", progress=listen)
    assert found[text]["tokens"] == 2 * 31
    assert found["tasks"][asked]["questions"] == 1
    assert len(loaded) == 1
    assert heard == ["perplexity", "questions"]


@pytest.mark.parametrize(
    ("length", "limit", "message"),
    [
        (32, 0, "limit: 0 given; give 1 question or more, or leave it out for all"),
        (32, -1, "limit: -1 given"),
        (200, None, "windows of 200 tokens, and the model has 128 positions"),
    ],
)
def test_what_cannot_be_is_refused_before_a_weight_is_read(folders, asked, monkeypatch, length, limit, message):
    monkeypatch.setattr(texts_and_tasks, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=message):
        evaluate(folders("llama"), [str(folders("llama") / "text.txt")], [asked], length, 2, limit, "auto", silent)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1"),
        ('{"context": "a", "choices": ["b", "c"]}', "Field required"),
        ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "answer 2 of 2 choices"),
        ("", "no question"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, line, message):
    file = tmp_path / "asked.jsonl"
    file.write_text(line)
    with pytest.raises(ValueError, match=message):
        read_questions(file)


def test_named_tasks_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"compress\[tasks\]"):
        check_tasks(["piqa"])


def test_a_score_that_is_not_finite_is_an_error(questions):
    with pytest.raises(RuntimeError, match="question 0"):
        score_questions(lambda ids: torch.full((*ids.shape, 97), float("nan")), Letters(), questions)
