"""Acceptance: the loss is that of the whole model, and what does not lower it leaves no trace in the checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from recipes_for_tests import own_text, symbolic_step, tiny_folder, tiny_recipe
from transformers import AutoModelForCausalLM

from compress import Checkpoint, data
from compress.evaluating.perplexity import perplexity
from compress.fitting import acceptance, run
from compress.fitting.job import prepare, tokens_of
from compress.fitting.look_ahead import WINDOWS, look_ahead
from compress.recipe import load_recipe

FACTORED = {"method": "feature_space", "rank": {"keep": 0.4}}
# A wrapped attention, a basis over two layers, pivoted linears, a surrogate.
MIXED = [
    {"method": "crystallized_attention", "layers": [0]},
    {"method": "shared_basis", "targets": {"roles": ["up"]}, "share": [["up"]], "layers_together": 2, "rank": {"keep": 0.5}},
    {"method": "whitened_svd", "targets": {"roles": ["down"]}, "form": "pivoted", "rank": {"keep": 0.5}},
]


def windows_of(recipe):
    job = prepare(recipe)
    texts = look_ahead(job)
    return job, texts.acceptance, texts.held_out


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "steps", [[FACTORED], MIXED, [{"method": "skip_mlp", "layers": [1]}]], ids=["factored", "mixed", "no MLP"]
)
def test_the_streamed_loss_is_that_of_the_checkpoint(folders, tmp_path, model_type, steps):
    recipe = tiny_recipe(folders(model_type), tmp_path / "out", *steps)
    quality = json.loads((run.fit(recipe) / "report.json").read_text())["quality"]
    _, tokens, held_out = windows_of(recipe)
    for folder, nll in ((recipe.output, quality["nll"]), (folders(model_type), quality["dense_nll"])):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        assert perplexity(model, tokens)["nll"] == pytest.approx(nll, rel=1e-5)
    assert quality["held_out"] is held_out is True


def test_no_window_is_both_calibrated_on_and_judged_on(folders, tmp_path):
    recipe = tiny_recipe(folders("llama"), tmp_path / "out", FACTORED)
    job, tokens, _ = windows_of(recipe)
    seen = {tuple(window) for window in tokens_of(job).tolist()}
    assert not seen & {tuple(window) for window in tokens.tolist()}
    assert len(tokens) == WINDOWS
    source = recipe.calibration.model_copy(update={"sequences": None})
    assert len(data.unseen_tokens(source, job.original.tokenizer(), 8)) == 0


def test_where_calibration_takes_all_windows_the_report_says_so(folders, tmp_path):
    text = {"text": str(folders("llama") / "text.txt"), "length": 32}
    quality = json.loads(
        (run.fit(tiny_recipe(folders("llama"), tmp_path, FACTORED, calibration=text)) / "report.json").read_text()
    )["quality"]
    assert quality["held_out"] is False
    assert quality["text"] == "the calibration text itself"


def test_a_lever_that_does_not_lower_the_loss_is_undone(folders, tmp_path, monkeypatch):
    """Here propagation doubles every tensor: the bytes are those of a fit that was never asked for it."""
    second_pass = run.second_pass

    def worse(*args, **options):
        made = second_pass(*args, **options)
        return [dataclasses.replace(r, tensors={k: v * 2 for k, v in r.tensors.items()}) for r in made]

    source = tiny_folder(tmp_path / "source", "llama")
    own_text(source)  # on random text a worse model may be a better one
    plain = run.fit(tiny_recipe(source, tmp_path / "plain", FACTORED))
    monkeypatch.setattr(run, "second_pass", worse)
    undone = run.fit(tiny_recipe(source, tmp_path / "undone", FACTORED, propagate_error=True))
    assert (undone / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    first, lever = json.loads((undone / "report.json").read_text())["quality"]["levers"]
    assert (first["lever"], first["taken"]) == ("closed form", True)
    assert (lever["lever"], lever["taken"]) == ("error propagation", False)
    assert lever["nll"] > first["nll"]


@pytest.mark.parametrize("better", [True, False])
def test_one_budget_must_beat_the_same_fraction_of_each(folders, tmp_path, monkeypatch, better):
    losses = iter([3.0, 3.5, 3.4 if better else 3.6])  # of the original, uniform ranks, one budget
    monkeypatch.setattr(acceptance, "nll", lambda *_: next(losses))
    step = {"method": "whitened_svd", "importance": "fisher"}
    shared = run.fit(tiny_recipe(folders("llama"), tmp_path / "shared", {**step, "rank": {"budget": 0.5}}))
    monkeypatch.undo()
    rule = {"budget": 0.5, "allocation": "global" if better else "uniform"}
    if better:
        monkeypatch.setattr(acceptance.Acceptance, "better", lambda self, lever, before, after: after)
    alone = run.fit(tiny_recipe(folders("llama"), tmp_path / "alone", {**step, "rank": rule}))
    assert (shared / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
    levers = json.loads((shared / "report.json").read_text())["quality"]["levers"]
    assert [(row["lever"], row["taken"]) for row in levers] == [("closed form, uniform ranks", True), (run.SHARED, better)]


@pytest.mark.parametrize("better", [True, False])
def test_expressions_give_way_to_the_simplest_where_they_cost_loss(folders, tmp_path, monkeypatch, better):
    losses = iter([3.0, 3.5, 3.4 if better else 3.6])  # of the original, with expressions, without
    monkeypatch.setattr(acceptance, "nll", lambda *_: next(losses))
    out = run.fit(tiny_recipe(folders("llama"), tmp_path / "out", symbolic_step(outputs=2, terms=3)))
    levers = json.loads((out / "report.json").read_text())["quality"]["levers"]
    assert [(row["lever"], row["taken"]) for row in levers] == [("closed form", True), ("no expressions in layer 1", better)]
    (layer,) = Checkpoint(out).expressions()
    assert (layer.chosen == (0, 0)) == better
    assert len(layer.fronts[0].candidates) > 1
    # What stands in the checkpoint is what its own recipe gives, with nothing judged.
    monkeypatch.setattr(acceptance, "nll", lambda *_: 3.0)
    again = run.fit(load_recipe(out / "recipe.yaml").model_copy(update={"output": tmp_path / "again"}))
    assert (out / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_the_loss_never_rises_from_one_lever_to_the_next(folders, tmp_path):
    more = {"propagate_error": True, "refine": {"steps": 5}, "finetune": {"steps": 5, "batch": 4}}
    folder = run.fit(tiny_recipe(folders("llama"), tmp_path / "out", FACTORED, **more))
    levers = json.loads((folder / "report.json").read_text())["quality"]["levers"]
    assert [row["lever"] for row in levers] == ["closed form", "error propagation", "block refinement", "fine-tuning"]
    taken = [row["nll"] for row in levers if row["taken"]]
    assert taken == sorted(taken, reverse=True)


@pytest.mark.parametrize("nll", [math.inf, math.nan, 1e3])
def test_a_broken_result_is_a_failure_and_nothing_is_written(folders, tmp_path, monkeypatch, nll):
    monkeypatch.setattr(acceptance, "nll", lambda model, tokens, made: nll if made else 3.0)
    recipe = tiny_recipe(folders("llama"), tmp_path / "out", FACTORED)
    with pytest.raises(RuntimeError, match=r"the result is broken: .* nothing was written"):
        run.fit(recipe)
    assert not (recipe.output / "config.json").exists()
    assert not list(recipe.output.glob("*.safetensors"))


def test_an_interrupted_fit_decides_as_it_did_before(folders, tmp_path, monkeypatch):
    recipe = tiny_recipe(folders("llama"), tmp_path / "out", FACTORED, propagate_error=True)
    before = (run.fit(recipe) / "config.json").read_bytes()
    monkeypatch.setattr(acceptance, "nll", lambda *_: pytest.fail("measured again"))
    assert (run.fit(recipe) / "config.json").read_bytes() == before


def test_another_table_of_ranks_is_judged_anew(folders, tmp_path):
    table, keys = tmp_path / "ranks.json", []
    for rank in (4, 12):
        table.write_text(json.dumps({"model.layers.0.mlp.up_proj": rank}))
        step = {"method": "weight_svd", "targets": {"roles": ["up"], "layers": [0]}, "rank": {"table": str(table)}}
        out = run.fit(tiny_recipe(folders("llama"), tmp_path / "out", step))
        report = json.loads((out / "report.json").read_text())
        assert [row["rank"] for row in report["modules"]] == [rank]
        keys.append(report["quality"]["nll"])
    assert keys[0] != keys[1]


def test_hidden_states_that_overflow_are_an_infinite_loss(tmp_path):
    source = tiny_folder(tmp_path / "source", "llama")
    job, tokens, _ = windows_of(tiny_recipe(source, tmp_path / "out", FACTORED))
    run.fit(job.recipe)
    made = run.replace_on_disk(job, job.variants["compressed"], run.source_hash_of(job))
    broken = [dataclasses.replace(r, tensors={k: v * 1e30 for k, v in r.tensors.items()}) for r in made]
    assert math.isfinite(acceptance.nll(job.model, tokens, made))
    assert acceptance.nll(job.model, tokens, broken) == math.inf
