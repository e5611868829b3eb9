"""Skip variants equal the baseline with its MLPs overridden by hand; labels tell apart; baselines are found and shared."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoints import tiny_checkpoint
from transformers import AutoModelForCausalLM

from compress.architecture import architecture
from compress.checkpoint.writer import copy_tokenizer
from compress.data import calibration_tokens, load_tokenizer
from compress.evaluating.controls import mlp_means
from compress.evaluating.origin import record
from compress.measuring.run import _texts_of
from compress.measuring.variants import collect, control_layers, write_skip
from compress.novella import FOLDER

VOCABULARY = 4096  # novella's, whose tokenizer these models borrow


@pytest.fixture
def pair(tmp_path, request):
    """(baseline, checkpoint) of one family; the checkpoint touches the last layer only."""
    base = tiny_checkpoint(tmp_path / "base", request.param, vocab_size=VOCABULARY)
    folder = tiny_checkpoint(tmp_path / "small", request.param, "affine_mlp", vocab_size=VOCABULARY)
    for each in (base, folder):
        copy_tokenizer(FOLDER, each)
    (tmp_path / "text.txt").write_text((FOLDER / "text" / "calibration.txt").read_text()[:4000])
    recipe = {
        "model": str(base),
        "calibration": {"text": str(tmp_path / "text.txt"), "sequences": 5, "length": 16},
        "steps": [],
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return base, folder


def _load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def _logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def _mlp(model, layer):
    """(first, last) modules of a layer's MLP."""
    row = architecture(model.config.model_type)
    chain = [model.get_submodule(f"{row.layer(layer)}.{name}") for name in row.mlp]
    return chain[0], chain[-1]


def _overridden(model, layer, value):
    """Hook the layer's MLP so that it returns value(its input)."""
    first, last = _mlp(model, layer)
    seen = {}
    first.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    last.register_forward_hook(lambda _, __, out: value(seen["x"]).expand_as(out))
    return model


pairs = pytest.mark.parametrize("pair", ["llama", "gpt2", "opt"], indirect=True)


@pairs
def test_skips_equal_the_baseline_with_that_mlp_overridden(pair, tmp_path):
    base, folder = pair
    ids = torch.arange(40).reshape(2, 20)
    tokens = calibration_tokens(record(folder).calibration, load_tokenizer(str(base)))
    outputs = []
    probe = _load(base)
    _mlp(probe, 1)[1].register_forward_hook(lambda _, __, out: outputs.append(out.double().flatten(0, -2)))
    for window in tokens:
        _logits(probe, window[None])
    mean = torch.cat(outputs).mean(0).float()
    for kind, value in {"identity": lambda x: x, "zero": torch.zeros_like, "mean": lambda x: mean}.items():
        got = _logits(_load(write_skip(folder, base, f"skip-{kind}", tmp_path)), ids)
        expected = _logits(_overridden(_load(base), 1, value), ids)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(got, _logits(_load(base), ids), atol=1e-2)


@pytest.mark.parametrize("pair", ["qwen2"], indirect=True)
def test_means_do_not_depend_on_the_batches(pair, monkeypatch):
    model = _load(pair[0])
    tokens = torch.randint(0, VOCABULARY, (7, 9), generator=torch.Generator().manual_seed(0))
    whole = mlp_means(model, tokens, [0, 1])
    monkeypatch.setattr("compress.evaluating.controls.MEAN_BATCH_TOKENS", 18)
    parts = mlp_means(model, tokens, [0, 1])
    for layer in (0, 1):
        torch.testing.assert_close(parts[layer], whole[layer], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pair", ["llama"], indirect=True)
def test_one_checkpoint_gets_short_labels(pair, tmp_path):
    base, folder = pair
    got = collect([folder], ["compressed", "skip-zero", "baseline"], tmp_path)
    assert [(v.label, v.kind, v.baseline) for v in got] == [
        ("baseline", "baseline", "baseline"),
        ("skip-zero", "skip-zero", "baseline"),
        ("compressed", "compressed", "baseline"),
    ]
    assert (got[0].folder, got[2].folder) == (base, folder)


@pytest.mark.parametrize("pair", ["llama"], indirect=True)
def test_a_written_skip_is_used_again_and_another_plan_is_another_folder(pair, tmp_path):
    base, folder = pair
    first = write_skip(folder, base, "skip-zero", tmp_path)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert write_skip(folder, base, "skip-zero", tmp_path) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    both = tiny_checkpoint(tmp_path / "both", "llama", "low_rank_linear", vocab_size=VOCABULARY)
    assert write_skip(both, base, "skip-zero", tmp_path) != first


@pytest.mark.parametrize("pair", ["llama"], indirect=True)
def test_several_checkpoints_share_a_baseline_and_keep_their_names(pair, tmp_path):
    base, folder = pair
    other = tiny_checkpoint(tmp_path / "deep" / "small", "llama", "low_rank_linear", vocab_size=VOCABULARY)
    got = collect([folder, other, folder], ["compressed", "skip-zero"], tmp_path / "work", baseline=base)
    assert [v.label for v in got] == [
        "baseline",
        f"{tmp_path.name}/small skip-zero",
        f"{tmp_path.name}/small",
        "deep/small skip-zero",
        "deep/small",
    ]
    assert {v.baseline for v in got} == {"baseline"}


@pytest.mark.parametrize("pair", ["llama"], indirect=True)
def test_where_a_baseline_is_given_the_original_of_the_recipe_is_not_looked_for(pair, tmp_path):
    base, folder = pair
    recipe = json.loads((folder / "recipe.yaml").read_text()) | {"model": "in_memory"}
    recipe["evaluation"] = {"texts": {"own": recipe["calibration"]["text"]}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    got = collect([folder], ["skip-mean", "compressed"], tmp_path / "work", base)
    assert [variant.kind for variant in got] == ["baseline", "skip-mean", "compressed"]
    assert [*_texts_of(got)] == ["own"]
    with pytest.raises(FileNotFoundError, match=r"'in_memory'.*; give the original model as baseline"):
        collect([folder], ["compressed"], tmp_path / "work")


def test_a_plain_model_is_a_baseline_of_its_own(tmp_path):
    paths = [tiny_checkpoint(tmp_path / name, "llama", seed=i) for i, name in enumerate(("one", "two"))]
    got = collect(paths, ["baseline", "skip-zero", "compressed"], tmp_path)
    assert [(v.label, v.baseline) for v in got] == [("one", "one"), ("two", "two")]


def test_control_layers_come_from_the_plan(tmp_path):
    from compress.plan import read_plan

    row = architecture("llama")
    assert control_layers(read_plan(tiny_checkpoint(tmp_path / "a", "llama", "zero_mlp")), row) == [1]
    assert control_layers(read_plan(tiny_checkpoint(tmp_path / "b", "llama", "low_rank_linear")), row) == [0, 1]
    both = tiny_checkpoint(tmp_path / "c", "llama", "low_rank_linear", "zero_mlp")
    assert control_layers(read_plan(both), row) == [1]


def test_an_unknown_variant_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="unknown variant 'skip-median'; allowed: baseline, skip-identity"):
        collect([tiny_checkpoint(tmp_path, "llama")], ["skip-median"], tmp_path)


def test_a_checkpoint_without_a_recipe_asks_for_its_baseline(tmp_path):
    folder = tiny_checkpoint(tmp_path, "llama", "zero_mlp")
    with pytest.raises(FileNotFoundError, match="give the original model as baseline"):
        collect([folder], ["compressed"], tmp_path)
