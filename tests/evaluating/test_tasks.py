"""Built-in multiple choice: the score is the log-probability of the choice, the right model gets the right answers."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from checkpoints import tiny_model

from compress.evaluating.tasks import Question, evaluate_tasks, read_questions, score_choice, score_questions


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
    got = evaluate_tasks("novella", [str(file)], limit=2)[str(file)]
    assert got == {"accuracy": 1.0, "accuracy_norm": 1.0, "stderr": 0.0, "questions": 2}


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
        evaluate_tasks("novella", ["piqa"])


def test_a_score_that_is_not_finite_is_an_error(questions):
    with pytest.raises(RuntimeError, match="question 0"):
        score_questions(lambda ids: torch.full((*ids.shape, 97), float("nan")), Letters(), questions)
