"""Layers are chosen by what was measured: least nll for what is saved first, in place, resumable, as the checkpoint is."""

import json
import math

import pytest
import torch
from recipes_for_tests import own_text, tiny_folder, tiny_recipe
from transformers import AutoModelForCausalLM

from compress import data
from compress.evaluating.cost import account
from compress.evaluating.perplexity import perplexity
from compress.fitting import run
from compress.fitting.acceptance import Acceptance
from compress.searching import layers
from compress.searching.cached_states import Split
from compress.searching.layers import LayerOptions, choose_layers
from compress.validation import checked

STEP = {"method": "residual_mlp", "latents": {"inputs": 6, "outputs": 2}, "affine": 3, "samples": 800}
SIZES = {"search_windows": 5, "test_windows": 6, "length": 24}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tiny_folder(tmp_path_factory.mktemp("source"), "qwen2", num_hidden_layers=4)
    own_text(folder)
    return folder


def recipe(source, output, *steps):
    return tiny_recipe(
        source, output, *(steps or [STEP]), evaluation={"texts": {"own": str(source / "text.txt")}, "length": 24}
    )


def options(**more):
    return LayerOptions.model_validate(SIZES | more)


@pytest.fixture(scope="module")
def chosen(source, tmp_path_factory):
    """(folder, layers.json) of a run without a budget."""
    folder = tmp_path_factory.mktemp("chosen")
    return folder, choose_layers(recipe(source, folder), options())


def lines(folder):
    return [json.loads(line) for line in (folder / "layers.jsonl").read_text().splitlines()]


def windows(source):
    text = data.TextSource(text=str(source / "text.txt"), length=SIZES["length"])
    return data.evaluation_tokens(text, data.load_tokenizer(str(source)))


def test_every_choice_was_the_cheapest_per_multiply_add_of_all_measured(chosen):
    folder, found = chosen
    header, *decisions = lines(folder)
    assert set(header) == {"format", "units", "splits"}
    for family, rows in found["families"].items():
        own = [d for d in decisions if d["family"] == family]
        assert [d["layer"] for d in own] == [row["layer"] for row in rows]
        assert sorted(row["layer"] for row in rows) == [0, 1, 2, 3]
        assert {t["candidate"] for t in own[0]["trials"]} == {0, 1, 2, 3}  # one a layer: the first choice measured them all
        total, removed = found["dense"]["cost"], 0
        saved = {row["layer"]: row["saved"] - (rows[i - 1]["saved"] if i else 0) for i, row in enumerate(rows)}
        nll, costs = math.log(found["dense"]["search"]), {}
        for decision in own:
            costs |= {t["candidate"]: (math.log(t["search"]) - nll) / saved[t["candidate"]] for t in decision["trials"]}
            assert min(costs, key=costs.get) == decision["layer"]
            assert decision["layer"] in {t["candidate"] for t in decision["trials"]}  # measured in this round, not remembered
            nll, removed = math.log(decision["search"]), removed + saved[decision["layer"]]
            del costs[decision["layer"]]
            assert decision["saved"] == removed
        assert rows[-1]["removed"] == pytest.approx(removed / total)


def test_controls_cost_at_least_as_much(chosen):
    _, found = chosen
    ours, *controls = found["families"].values()
    assert list(found["families"]) == ["residual_mlp", "affine_mlp", "prune_channels"]
    for rows in controls:
        assert rows[-1]["saved"] <= ours[-1]["saved"]


@pytest.mark.parametrize("count", [2, 4])
def test_a_row_is_what_the_checkpoint_of_these_layers_measures(source, chosen, tmp_path, count, monkeypatch):
    monkeypatch.setattr(Acceptance, "better", lambda self, lever, before, after: before)  # expressions stay
    _, found = chosen
    rows = found["families"]["residual_mlp"][:count]
    folder = run.fit(recipe(source, tmp_path, {**STEP, "layers": sorted(row["layer"] for row in rows)}))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = windows(source)
    assert perplexity(model, tokens[:5])["perplexity"] == pytest.approx(rows[-1]["search"], rel=1e-5)
    assert perplexity(model, tokens[-6:])["perplexity"] == pytest.approx(rows[-1]["test"], rel=1e-5)
    dense, now = account(source).multiply_adds, account(folder).multiply_adds
    assert dense.total - now.total == rows[-1]["saved"]


def test_a_budget_stops_the_choice_and_is_kept(source, chosen, tmp_path):
    _, whole = chosen
    found = choose_layers(recipe(source, tmp_path), options(budget=0.6, controls=False))
    (rows,) = found["families"].values()
    assert rows == whole["families"]["residual_mlp"][: len(rows)]
    assert rows[-1]["removed"] >= 0.4 > rows[-2]["removed"]
    assert found["layers"] == sorted(row["layer"] for row in rows)
    assert json.loads((tmp_path / "layers.json").read_text()) == found
    further = choose_layers(recipe(source, tmp_path), options(controls=False))  # the log serves another budget too
    assert further["families"]["residual_mlp"] == whole["families"]["residual_mlp"]


def test_an_interrupted_run_continues_behind_its_last_choice(source, chosen, tmp_path, monkeypatch):
    whole, found = chosen
    append, left = layers.append, [6]

    def dying(log, line):
        if left[0] == 0:
            with log.open("a") as file:
                file.write('{"family": "affi')
            raise KeyboardInterrupt
        left[0] -= 1
        append(log, line)

    monkeypatch.setattr(layers, "append", dying)
    with pytest.raises(KeyboardInterrupt):
        choose_layers(recipe(source, tmp_path), options())
    left[0] = 100
    measured = []
    measure = Split.measure
    monkeypatch.setattr(Split, "measure", lambda self, *given: measured.append(given[0]) or measure(self, *given))
    assert choose_layers(recipe(source, tmp_path), options()) == found
    assert (tmp_path / "layers.jsonl").read_bytes() == (whole / "layers.jsonl").read_bytes()
    decisions = lines(tmp_path)[1:]
    assert len(measured) == sum(len(d["trials"]) + 1 for d in decisions[6:])


def test_a_layer_goes_on_to_smaller_sizes_and_the_steps_say_where_each_stopped(source, tmp_path, monkeypatch):
    monkeypatch.setattr(Acceptance, "better", lambda self, lever, before, after: before)
    sizes = {"affine": [2, 5, 8]}
    found = choose_layers(recipe(source, tmp_path / "choice"), options(sizes=sizes))
    rows = found["families"]["residual_mlp"]
    last, saved = {}, 0
    for row in rows:
        assert row["size"] < last.get(row["layer"], 9)  # a layer only ever gets smaller
        assert row["saved"] > saved
        last[row["layer"]], saved = row["size"], row["saved"]
    assert any(sum(r["layer"] == layer for r in rows) > 1 for layer in last)
    assert set(last.values()) == {2}  # to the end without a budget
    stopped = choose_layers(recipe(source, tmp_path / "choice"), options(sizes=sizes, budget=0.6))
    final = stopped["families"]["residual_mlp"][-1]
    assert stopped["families"]["residual_mlp"] == rows[: len(stopped["families"]["residual_mlp"])]
    folder = run.fit(recipe(source, tmp_path / "fit", *stopped["steps"]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert perplexity(model, windows(source)[-6:])["perplexity"] == pytest.approx(final["test"], rel=1e-5)
    assert account(source).multiply_adds.total - account(folder).multiply_adds.total == final["saved"]
    for name in ("affine_mlp", "prune_channels"):  # of one layer and size, a control costs at least as much
        assert found["families"][name][-1]["saved"] <= rows[-1]["saved"]


def test_the_curve_is_drawn(chosen):
    folder, _ = chosen
    assert (folder / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_what_follows_a_texts_own_sequences_is_in_no_split(source, tmp_path):
    text = {"text": str(source / "text.txt"), "length": 24, "sequences": 11}
    found = choose_layers(
        recipe(source, tmp_path).model_copy(
            update={"evaluation": tiny_recipe(source, tmp_path, STEP, evaluation={"texts": {"own": text}}).evaluation}
        ),
        options(budget=0.9, controls=False),
    )
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    assert perplexity(model, windows(source)[5:11])["perplexity"] == pytest.approx(found["dense"]["test"], rel=1e-5)


@pytest.mark.parametrize(
    ("steps", "given", "message"),
    [
        (
            [{"method": "weight_svd", "rank": 4}],
            {},
            r"one step of affine_mlp, crystallized_attention, .*; the recipe has weight_svd",
        ),
        ([{**STEP, "layers": [0]}, {**STEP, "layers": [1]}], {}, r"the recipe has residual_mlp, residual_mlp"),
        ([STEP], {"budget": 0.01}, r"budget: 0.01 given, but with every targeted layer replaced 0\.\d+ of their"),
        ([STEP], {"sizes": {"afine": [2, 4]}}, r"unknown key 'afine'; did you mean 'affine'\?"),
        ([STEP], {"sizes": {"affine": [2, 99]}}, r"affine: 99 given, at most d_model = 32"),
        ([STEP], {"test_windows": 900}, r"lower --search-windows, --test-windows or --length"),
    ],
)
def test_what_cannot_be_chosen_is_named(source, tmp_path, steps, given, message):
    with pytest.raises(ValueError, match=message):
        choose_layers(recipe(source, tmp_path, *steps), options(**given))


def test_a_surrogate_larger_than_the_mlps_is_refused(tmp_path):
    source = tiny_folder(tmp_path / "model", "qwen2", intermediate_size=8)
    own_text(source)
    with pytest.raises(ValueError, match="saves no multiply-adds of the MLPs here"):
        choose_layers(recipe(source, tmp_path / "out", {**STEP, "affine": 32}), options())


def test_attention_layers_are_chosen_by_what_they_average(source, tmp_path):
    step = {"method": "crystallized_attention", "rank": 2}
    given = options(budget=0.4, sizes={"rank": [1, 2, 4]})
    found = choose_layers(recipe(source, tmp_path / "choice", step), given)
    ((method, rows),) = found["families"].items()
    assert (method, found["saves"]) == ("crystallized_attention", "averaged value numbers")
    assert rows[-1]["removed"] >= 0.6 > rows[-2]["removed"]
    folder = run.fit(recipe(source, tmp_path / "fit", *found["steps"]))
    modules = json.loads((folder / "report.json").read_text())["modules"]
    assert sum(row["averaged"]["before"] - row["averaged"]["after"] for row in modules) == rows[-1]["saved"]
    assert found["dense"]["cost"] == 4 * modules[0]["averaged"]["before"]
    measured = perplexity(AutoModelForCausalLM.from_pretrained(folder), windows(source)[-SIZES["test_windows"] :])
    assert measured["perplexity"] == pytest.approx(rows[-1]["test"], rel=1e-4)


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"budget: Input should be less than 1; given 1\.5"):
        checked(LayerOptions, {"budget": 1.5})
    with pytest.raises(ValueError, match=r"did you mean 'budget'\?"):
        checked(LayerOptions, {"budge": 0.5})
