"""A config.json is checked before transformers makes tables of its sizes."""

from __future__ import annotations

import json
import time

import huggingface_hub
import pytest
from checkpoints import tiny_checkpoint

import compress
from compress.checkpoint.config import load_config, read_config

HOSTILE = {
    "layers": (
        {"num_hidden_layers": 10**9},
        "num_hidden_layers: Input should be less than or equal to 10000",
    ),
    "a wide head": ({"head_dim": 2**40}, "head_dim: Input should be less than or equal to 16384"),
    "a number as text": ({"vocab_size": "97"}, "vocab_size: Input should be a valid integer; given '97'"),
    "a type that is code": ({"model_type": "x; import os"}, "model_type: String should match pattern"),
    "no type": ({"model_type": None}, "model_type: Input should be a valid string"),
    "an activation of code": ({"hidden_act": "silu)\n("}, "hidden_act: String should match pattern"),
    "rope of code": ({"rope_parameters": {"rope_type": "\x1b[2J"}}, "rope_parameters.rope_type"),
    "a norm that is no number": ({"rms_norm_eps": float("nan")}, "rms_norm_eps: Input should be a finite number"),
    "a token that is code": ({"eos_token_id": ["exit()"]}, "eos_token_id"),
    "another architecture": ({"model_type": "no_such_model"}, "transformers cannot read it"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("config"), "llama")


@pytest.mark.parametrize(("changes", "message"), HOSTILE.values(), ids=HOSTILE)
def test_it_is_refused_with_the_entry_in_hardly_any_time(folder, changes, message):
    file = folder / "config.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), **changes}))
    started = time.process_time()
    try:
        for load in (load_config, compress.from_pretrained) if "another" not in message else (load_config,):
            with pytest.raises(ValueError) as error:
                load(folder)
            assert str(file) in str(error.value) or "no_such_model" in str(error.value)
    finally:
        file.write_text(before)
    assert "no_such_model" in str(error.value) or message in str(error.value)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "generation_config.json", "tokenizer.json", "special_tokens_map.json"]
)
def test_the_files_beside_it_have_limits_too(folder, name, tmp_path):
    doors = (
        read_config,
        lambda given: compress.evaluate(given, texts=["novella"]),
        lambda given: compress.explain(given, "model.layers.0.mlp", "some text"),
        lambda given: compress.bench(given, texts={"own": "novella"}, out=tmp_path / "results.json"),
    )
    (folder / name).write_text("[" * 1000)
    try:
        for door in doors:
            with pytest.raises(ValueError, match=f"{name}: JSON nested deeper than 130"):
                door(folder)
    finally:
        (folder / name).unlink()


def test_a_model_of_the_hub_has_limits_too(folder, monkeypatch):
    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: asked.update(options) or folder)
    assert compress.from_pretrained("org/name", revision="v1", token="secret").config.model_type == "llama"
    assert (asked["revision"], asked["token"], "*.py" in asked["allow_patterns"]) == ("v1", "secret", False)
    (folder / "generation_config.json").write_text("[" * 1000)
    try:
        with pytest.raises(ValueError, match=r"generation_config\.json: JSON nested deeper than 130"):
            compress.from_pretrained("org/name")
    finally:
        (folder / "generation_config.json").unlink()
