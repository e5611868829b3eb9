"""The command that runs the whole matrix goes on where it stopped, and its summary is a table of docs/numbers."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from conformance import __main__ as command
from conformance.case import Case, names_what_is_supported
from conformance.journal import Journal
from conformance.outcome import Outcome


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The command with checks that take no time: the first case of each run fails its first check."""
    asked = []

    def outcomes(case, names, sources, elsewhere):
        for name in names:
            asked.append((case, name))
            yield Outcome(case, name, "FAIL" if len(asked) == 1 else "pass", "as told" if len(asked) == 1 else "", 0.5)

    monkeypatch.setattr(command, "outcomes", outcomes)
    files = ["--journal", str(tmp_path / "j.jsonl"), "--summary", str(tmp_path / "s.json")]

    def call(*arguments):
        asked.clear()
        return command.main([*files, *arguments]), list(asked)

    return call


def test_it_goes_on_where_it_stopped(run, tmp_path):
    code, first = run("--limit", "1")
    assert code == 1, "something failed"
    with (tmp_path / "j.jsonl").open("a") as file:
        file.write('{"seed": 0, "what": "met')  # killed while it wrote
    _, second = run("--limit", "1")
    assert first
    assert second
    assert not {*first} & {*second}
    _, third = run("--limit", "1")
    assert not {*third} & {*first, *second}, "the line after the broken one was lost"
    _, again = run("--limit", "1", "--failed")
    assert again[0] == first[0]
    _, other = run("--limit", "1", "--seed", "5")
    assert other[0] not in {*first, *second}, "another seed is another order"


def test_only_one_method(run, capsys):
    _, asked = run("--only", "latent_kv", "--limit", "1")
    assert {case.name for case, _ in asked} == {"latent_kv"}
    with pytest.raises(SystemExit):
        run("--only", "latent")
    assert "there are affine_mlp" in capsys.readouterr().err


def test_the_summary_is_a_table_of_the_documentation(run, tmp_path, monkeypatch):
    run("--limit", "40")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs")
    table = importlib.import_module("table").read(tmp_path / "s.json")
    sys.modules.pop("table")
    text = table.table()
    assert "1 fail:" in " ".join(text.split())
    assert "| `latent_kv` |" in text
    assert json.loads((tmp_path / "s.json").read_text())["figures"]["run"] >= 40


def test_the_last_outcome_counts(tmp_path):
    case = Case("method", "skip_mlp", 0, "opt")
    for status in ("FAIL", "pass"):
        Journal(tmp_path / "j.jsonl", 3).add(Outcome(case, "memory", status))
    assert Journal(tmp_path / "j.jsonl", 3).known[case, "memory"].status == "pass"
    assert not Journal(tmp_path / "j.jsonl", 4).known


@pytest.mark.parametrize(
    ("message", "good"),
    [
        ("latent_kv: 'gpt2' given; there is a latent attention for llama, mistral", True),
        ("the file has no capped scores; supported: it without a cap", True),
        ("not possible with gpt2, sorry", False),
        ("KeyError: 'k'", False),
    ],
)
def test_a_refusal_names_what_is_supported(message, good):
    assert names_what_is_supported(message, "gpt2") == good
