"""What a search measures on: windows of a text or multiple-choice questions, apart for the search and for the report."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress import data
from compress.evaluating.tasks import Question, _joint_tokens, read_questions
from compress.fitting.job import Job

Splits = tuple[Sequence["Perplexity | Accuracy"], "Perplexity | Accuracy"]  # what the search sees, and what the report sees
CHUNKS = 4  # of the search questions: three decide, the fourth checks


@dataclass(frozen=True)
class Perplexity:
    """Windows of tokens (n, length): exp of the mean nll of every position but the first."""

    tokens: Tensor
    higher_is_better = False

    @property
    def asked(self) -> Tensor:
        """Which predictions count, (n, length − 1)."""
        return torch.ones(self.tokens.shape[0], self.tokens.shape[1] - 1, dtype=torch.bool)

    def value(self, log_probabilities: Tensor) -> float:
        """From the summed log-probabilities of each row, (n,)."""
        mean = -float(log_probabilities.sum()) / int(self.asked.sum())
        # exp overflows in float64 from 709.8 on.
        return math.exp(mean) if math.isfinite(mean) and mean < 700 else math.inf


@dataclass(frozen=True)
class Accuracy:
    """Multiple-choice questions: one row of tokens per choice, padded on the right, which causal layers never look at."""

    tokens: Tensor
    asked: Tensor
    answers: tuple[tuple[int, int, int], ...]  # (first row, choices, answer) of each question
    higher_is_better = True

    @classmethod
    def of(cls, questions: Sequence[Question], tokenizer: Any) -> Accuracy:
        """Every choice after its context, as one row. `choices` of a question are neighbouring rows."""
        rows: list[tuple[list[int], int]] = []
        answers = []
        for question in questions:
            answers.append((len(rows), len(question.choices), question.answer))
            rows += [_joint_tokens(tokenizer, question.context, choice) for choice in question.choices]
        length = max(2, *(len(ids) for ids, _ in rows))  # at least one prediction
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        asked = torch.zeros(len(rows), length - 1, dtype=torch.bool)
        for row, (ids, start) in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
            # The logits at position t predict token t + 1: the choice's first token is predicted at start − 1.
            asked[row, start - 1 : len(ids) - 1] = True
        return cls(tokens, asked, tuple(answers))

    def value(self, log_probabilities: Tensor) -> float:
        """Fraction of questions whose answer is the most likely choice; scores that are not finite are no answer."""
        right = 0
        for at, choices, answer in self.answers:
            scores = log_probabilities[at : at + choices]
            # argmax would take a NaN for the largest.
            right += bool(torch.isfinite(scores).all()) and int(scores.argmax()) == answer
        return right / len(self.answers)


def questions(file: Path, seed: int, tokenizer: Any) -> tuple[list[Accuracy], Accuracy]:
    """(the chunks a search decides on, the half that only the report sees). Raises ValueError for too few questions."""
    asked = read_questions(file)
    random.Random(seed).shuffle(asked)  # files are often sorted by subject
    half = len(asked) // 2
    if half < CHUNKS:
        raise ValueError(f"{file} holds {len(asked)} questions; a search needs at least {2 * CHUNKS}")
    return [Accuracy.of(asked[i:half:CHUNKS], tokenizer) for i in range(CHUNKS)], Accuracy.of(asked[half:], tokenizer)


def windows(job: Job, length: int, search: int, test: int) -> tuple[list[Perplexity], Perplexity]:
    """(first `search` windows, last `test` windows) of the first evaluation text. Raises ValueError where they overlap, and for
    what the model has no place for.

    A text with `sequences` of its own ends there: what follows is in neither split.
    """
    evaluation, tokenizer, config = job.recipe.evaluation, job.original.tokenizer(), job.model.config
    if not evaluation.texts:
        raise ValueError("evaluation.texts is empty; a search needs one: --set evaluation.texts.own.text=novella")
    name, text = next(iter(evaluation.texts.items()))
    # As many windows of this length as hold the tokens of the text's own sequences.
    most = None if text.sequences is None else max(1, text.sequences * evaluation.source(name).length // length)
    data.check_length(length, config, f"evaluation text {name!r}")
    source = evaluation.source(name).model_copy(update={"length": length, "sequences": most})
    found = data.check_tokens(data.evaluation_tokens(source, tokenizer), config, tokenizer, f"evaluation text {name!r}")
    if len(found) < search + test:
        raise ValueError(
            f"evaluation text {name!r} gives {len(found)} windows of {length}, the two splits need {search + test}: "
            "lower --search-windows, --test-windows or --length"
        )
    return [Perplexity(found[:search])], Perplexity(found[-test:])
