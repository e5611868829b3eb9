"""The commands that measure: what they hand to the library, and that JSON is JSON."""

import json

import pytest
from results_for_tests import made_results

from compress.api import finished
from compress.cli.console import show
from compress.cli.tables import preview_table
from compress.reporting.write import render_table


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What `compress bench` asks of the library, which answers with a benchmark that is measured already."""
    given = {}

    def bench(folders, **options):
        given.update(options)
        results = made_results()
        options["out"].write_text(json.dumps(results))
        return results

    monkeypatch.setattr(finished, "bench", bench)
    monkeypatch.setattr(finished, "checkpoint_folder", lambda folder: folder)
    return given


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (["a/eval.txt", "b/test.txt"], {"eval": "a/eval.txt", "test": "b/test.txt"}),
        (["a/eval.txt", "b/eval.txt", "c.txt"], {"a/eval.txt": "a/eval.txt", "b/eval.txt": "b/eval.txt", "c": "c.txt"}),
    ],
)
def test_bench_measures_every_text_that_is_given(compress, asked, tmp_path, texts, named):
    options = [word for text in texts for word in ("--text", text)]
    code, _, err = compress("bench", tmp_path, *options, "--out", tmp_path / "results.json")
    assert (code, err) == (0, "")
    assert asked["texts"] == named


def test_bench_with_a_report_and_json_prints_json_alone(compress, asked, tmp_path):
    code, out, _ = compress("bench", tmp_path, "--out", tmp_path / "results.json", "--report", "--json")
    assert code == 0
    assert json.loads(out)["format"] == 1
    assert (tmp_path / "report.html").is_file()


def test_brackets_and_colons_in_names_and_reasons_are_text(capsys):
    results = made_results()
    results["skipped"][0]["reason"] = 'pip install "compress[hub]" [/x] :smile:'
    show(render_table(results))
    show(preview_table([], 0, "runs/[a]/x[/b]"))
    out = capsys.readouterr().out
    assert 'not measured: ort-int8 on cpu: pip install "compress[hub]" [/x] :smile:' in out
    assert "plan for runs/[a]/x[/b]" in out
