"""Multiple-choice accuracy: the tasks of lm-evaluation-harness by name, or a jsonl file of your own, scored here and offline.

A question is one JSON object a line: {"context": …, "choices": […], "answer": index}. A choice's score is the log-probability
of its tokens after the context; `accuracy` takes the best score, `accuracy_norm` the best score per character, as the harness
does in `acc` and `acc_norm`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.nn import functional

from compress.beginning import tokenize
from compress.evaluating.perplexity import Model, logits_of
from compress.progress import Progress
from compress.reading import json_text


class Question(BaseModel):
    """One line of a jsonl file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    context: str = Field(min_length=1)
    choices: tuple[str, ...] = Field(min_length=2)
    answer: int = Field(ge=0)


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Mapping[str, Sequence[Question] | None],
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """{task: {"accuracy", "accuracy_norm", "stderr", "questions"}} of a model on what `check_tasks` found.

    `limit` takes the first questions of each. Raises RuntimeError where a score is not finite.
    """
    files = {task: asked[:limit] for task, asked in tasks.items() if asked is not None}
    out = {task: score_questions(model, tokenizer, asked, progress=progress) for task, asked in files.items()}
    named = [task for task, asked in tasks.items() if asked is None]
    return {**out, **(_harness(model, tokenizer, named, limit) if named else {})}


def check_tasks(tasks: Sequence[str], limit: int | None = None) -> dict[str, list[Question] | None]:
    """The questions of each task that is a .jsonl file; None for a name (or a .yaml file) that lm-evaluation-harness knows.

    Raises FileNotFoundError or ValueError for a file that holds none, a name nobody knows, a limit that leaves no question, and
    where the harness is missing.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit} given; give 1 question or more, or leave it out for all")
    if named := [task for task in tasks if not task.endswith(".jsonl")]:
        _need_harness(named)
        from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

        known = [*TaskManager().all_tasks]
        for task in named:
            if task not in known and not Path(task).is_file():
                near = difflib.get_close_matches(task, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"no task {task!r}; {hint}`lm-eval ls tasks` lists them; or give a .jsonl file of questions")
    return {task: read_questions(Path(task)) if task.endswith(".jsonl") else None for task in tasks}


def read_questions(path: Path) -> list[Question]:
    """The questions of a jsonl file. Raises FileNotFoundError, or ValueError naming the line that is no question."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}; give a jsonl file of context, choices and answer, or a harness task")
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            question = Question.model_validate(json_text.loads(line, ""))
        except ValueError as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)[2:]
            raise ValueError(
                f'{path} line {number}: {reason}; write {{"context": text, "choices": [text, …], "answer": index}}'
            ) from None
        if question.answer >= len(question.choices):
            raise ValueError(f"{path} line {number}: answer {question.answer} of {len(question.choices)} choices; count from 0")
        questions.append(question)
    if not questions:
        raise ValueError(f"{path} holds no question; write one JSON object a line")
    return questions


def score_questions(
    model: Model, tokenizer: Any, questions: Sequence[Question], progress: Progress | None = None
) -> dict[str, Any]:
    """Accuracy over the questions, with its standard error. Raises RuntimeError where a score is not finite."""
    tick = progress("questions", len(questions)) if progress else lambda: None
    right = right_norm = 0
    for number, question in enumerate(questions):
        scores = [score_choice(model, tokenizer, question.context, choice) for choice in question.choices]
        if not all(map(math.isfinite, scores)):
            raise RuntimeError(f"question {number} has a score that is not finite; evaluate in float32")
        right += _best(scores) == question.answer
        # In characters, as the harness has it; an empty choice must not divide by zero.
        lengths = [max(1, len(choice)) for choice in question.choices]
        right_norm += _best([s / n for s, n in zip(scores, lengths, strict=True)]) == question.answer
        tick()
    count = len(questions)
    accuracy = right / count
    # The sample standard deviation of zeros and ones, with n − 1, over √n.
    stderr = math.sqrt(accuracy * (1 - accuracy) / max(1, count - 1))
    return {"accuracy": accuracy, "accuracy_norm": right_norm / count, "stderr": stderr, "questions": count}


def score_choice(model: Model, tokenizer: Any, context: str, choice: str) -> float:
    """log p(choice | context) in nats. Raises ValueError for a choice that adds no token."""
    ids, start = _joint_tokens(tokenizer, context, choice)
    if start >= len(ids):
        raise ValueError(f"choice {choice!r} adds no token to its context")
    table = torch.tensor([ids])
    # The logits at position t predict token t + 1.
    logits = logits_of(model, table)[0, start - 1 : -1].float().cpu()
    chosen = torch.tensor(ids[start:])
    return float(functional.log_softmax(logits, dim=-1).gather(1, chosen[:, None]).sum(dtype=torch.float64))


def _joint_tokens(tokenizer: Any, context: str, choice: str) -> tuple[list[int], int]:
    """Tokens of context and choice together, and where the choice begins.

    Spaces that end the context belong to the choice: most tokenizers join a space to the word after it.
    """
    stripped = context.rstrip()
    choice, context = context[len(stripped) :] + choice, stripped
    # Tokenised together, as the model reads it: tokens may reach over the border.
    front, whole = tokenize(tokenizer, context + choice)
    # Nothing predicts the first token, so the context has at least one.
    return front + whole, max(1, len(front) + len(tokenize(tokenizer, context)[1]))


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def _need_harness(named: Sequence[str]) -> None:
    try:
        import lm_eval  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        raise ValueError(
            f'{", ".join(named)}: tasks by name need lm-evaluation-harness; pip install "compress[tasks]", '
            "or give a .jsonl file of context, choices and answer"
        ) from None


def _harness(model: Any, tokenizer: Any, named: Sequence[str], limit: int | None) -> dict[str, dict[str, Any]]:
    import lm_eval  # type: ignore[import-not-found]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]

    try:
        found = lm_eval.simple_evaluate(HFLM(pretrained=model, tokenizer=tokenizer), tasks=list(named), limit=limit)
    except KeyError as error:
        raise ValueError(f"lm-evaluation-harness: {error.args[0]}; `lm-eval ls tasks` lists its tasks") from None
    return {task: dict(_harness_row(found, task)) for task in found["results"]}


def _harness_row(found: Any, task: str) -> Iterator[tuple[str, Any]]:
    names = {"acc,none": "accuracy", "acc_norm,none": "accuracy_norm", "acc_stderr,none": "stderr"}
    yield from ((ours, found["results"][task][theirs]) for theirs, ours in names.items() if theirs in found["results"][task])
    yield "questions", found["n-samples"].get(task, {}).get("effective")  # a group has none of its own
