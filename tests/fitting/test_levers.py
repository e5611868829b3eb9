"""Each lever of the low-rank methods lowers the divergence from the original on the calibration text."""

import itertools
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from recipes_for_tests import divergence, own_text, tiny_recipe
from safetensors.torch import load_file, save_file

from compress.fitting import propagate as propagation
from compress.fitting import run
from compress.fitting.acceptance import Acceptance
from compress.parallel.lanes import MicroBatch
from compress.stream.hidden import Hidden


@pytest.fixture(scope="module")
def speaking(folders, tmp_path_factory):
    """As `folders`, with text that the model itself wrote: on random text a lever may well lower the loss or raise it."""

    def get(model_type):
        source = tmp_path_factory.mktemp(model_type) / "source"
        shutil.copytree(folders(model_type), source)
        own_text(source)
        return source

    return get


def test_each_lever_lowers_the_divergence_on_calibration_text(speaking, tmp_path):
    source = speaking("llama")
    fisher = {"importance": "fisher", "form": "pivoted"}
    steps = {
        "whitened": ({"method": "whitened_svd", "rank": {"keep": 0.6}}, {}),
        "pivoted": ({"method": "feature_space", "rank": {"keep": 0.6}, **fisher}, {}),
        "allocated": ({"method": "feature_space", "rank": {"budget": 0.6}, **fisher}, {}),
        "refined": ({"method": "feature_space", "rank": {"budget": 0.6}, **fisher}, {"refine": {"steps": 60, "lr": 3e-3}}),
    }
    kl, kept = {}, {}
    for name, (step, more) in steps.items():
        recipe = tiny_recipe(source, tmp_path / name, step, **more)
        out = run.fit(recipe)
        kl[name] = divergence(out, source, recipe)
        p = json.loads((out / "report.json").read_text())["parameters"]
        kept[name] = p["targeted_compressed"] / p["targeted_baseline"]
    assert kl["whitened"] > kl["pivoted"] > kl["allocated"] > kl["refined"]
    assert all(value <= 0.6 for value in kept.values()), kept


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "opt"])
def test_error_propagation_lowers_the_divergence(folders, tmp_path, monkeypatch, model_type):
    """The lever itself, taken whatever the loss of random text says of it."""
    monkeypatch.setattr(Acceptance, "better", lambda self, lever, before, after: after)
    source = folders(model_type)
    kl = {}
    for propagate in (False, True):
        recipe = tiny_recipe(
            source, tmp_path / str(propagate), {"method": "feature_space", "rank": {"keep": 0.4}}, propagate_error=propagate
        )
        kl[propagate] = divergence(run.fit(recipe), source, recipe)
    assert kl[True] < kl[False]


def test_a_layer_whose_refits_miss_more_of_its_outputs_stays_as_it_was(folders, tmp_path, monkeypatch):
    answers = itertools.cycle([2.0, 1.0])  # with the refits, without
    monkeypatch.setattr(propagation, "missed", lambda *_: next(answers))
    monkeypatch.setattr(Acceptance, "better", lambda self, lever, before, after: after)
    step = {"method": "feature_space", "rank": {"keep": 0.4}}
    outs = [run.fit(tiny_recipe(folders("llama"), tmp_path / str(p), step, propagate_error=p)) for p in (False, True)]
    plain, judged = (load_file(out / "model.safetensors") for out in outs)
    assert plain.keys() == judged.keys()
    assert all(torch.equal(plain[name], judged[name]) for name in plain)


def test_what_a_layer_misses_is_relative_to_each_token():
    """Of two held-out tokens one is a thousand times larger, and half of each is missed: a quarter, squared."""
    layer, student = torch.nn.Identity(), torch.nn.Identity()
    states = torch.tensor([[[2.0, 0.0], [0.0, 2000.0]]])
    whole = {"pieces": [MicroBatch(0, slice(0, 1))], "shape": (1, 2, 2), "own": range(1)}
    original, compressed = (Hidden([s], {(1, 2): [((), {})]}, **whole) for s in (states, states / 2))
    model = SimpleNamespace(dtype=torch.float32, device=torch.device("cpu"))
    twin = SimpleNamespace(layer=layer, student=student, index=0, model=model)
    assert propagation.missed(twin, torch.eye(2), original, compressed) == pytest.approx(0.25)
    # A direction that costs nothing is not missed.
    assert propagation.missed(twin, torch.diag(torch.tensor([1.0, 0.0])), original, compressed) == pytest.approx(0.125)


def test_error_propagation_never_loses_where_activations_have_a_large_mean_and_linears_no_bias(folders, tmp_path):
    """Centred moments with the offset dropped lose here, and gave SmolLM2-135M a perplexity of 10⁹."""
    source = tmp_path / "source"
    shutil.copytree(folders("llama"), source)
    weights = load_file(source / "model.safetensors")
    weights["model.embed_tokens.weight"] += 10.0
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    own_text(source)
    kl = {}
    for propagate in (False, True):
        step = {"method": "whitened_svd", "importance": "fisher", "rank": {"keep": 0.3}}
        recipe = tiny_recipe(source, tmp_path / str(propagate), step, propagate_error=propagate)
        kl[propagate] = divergence(run.fit(recipe), source, recipe)
    assert kl[True] < kl[False]
