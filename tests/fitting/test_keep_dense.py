"""The speed verdict: what is slower factored stays dense, and a verdict is measured once."""

import json

import pytest
import torch
from recipes_for_tests import logits, tiny_recipe

from compress.fitting import keep_dense, run
from compress.plan import ModuleSpec


@pytest.mark.parametrize(("ratio", "kind"), [(1.5, "dense"), (0.9, "low_rank_linear")])
def test_what_is_slower_factored_stays_dense(folders, tmp_path, monkeypatch, ratio, kind):
    monkeypatch.setattr(keep_dense.Verdicts, "_ratio", lambda *_: ratio)
    source = folders("llama")
    recipe = tiny_recipe(source, tmp_path, {"method": "feature_space", "rank": {"keep": 0.5}}, keep_dense_if_slower=True)
    out = run.fit(recipe)
    rows = json.loads((out / "report.json").read_text())["modules"]
    assert {row["kind"] for row in rows} == {kind}
    assert all(row["time_ratio"] == {"decode": ratio, "prefill": ratio} for row in rows)
    if kind == "dense":
        assert torch.equal(logits(out), logits(source))


def test_the_verdict_times_both_shapes_and_remembers(tmp_path):
    spec = ModuleSpec(
        module="m", kind="low_rank_linear", options={"in_features": 256, "out_features": 256, "rank": 4, "bias": False}
    )
    first = keep_dense.Verdicts(tmp_path / "speed.json", "cpu", torch.float32).ratios(spec)
    assert set(first) == {"decode", "prefill"}
    assert all(value > 0 for value in first.values())
    assert keep_dense.Verdicts(tmp_path / "speed.json", "cpu", torch.float32).ratios(spec) == first
