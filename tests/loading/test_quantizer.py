"""Checkpoints load through plain transformers, in every way a program may ask, and refuse what they should not trust."""

import json
import os
import subprocess
import sys

import pytest
import torch
from checkpoints import tiny_checkpoint
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import compress

IDS = torch.arange(40).view(2, 20)

PROGRAM = """
import json, sys, torch
from transformers import AutoModelForCausalLM
assert "compress" not in dir()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
ids = torch.arange(40).view(2, 20)
with torch.no_grad():
    text = model.generate(ids, max_new_tokens=8, do_sample=False).tolist()
    print(json.dumps({"logits": model(ids).logits.double().sum().item(), "text": text}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("loading"), "qwen2", "low_rank_linear", "symbolic_mlp", "mean_mlp")


def test_a_program_that_never_imports_compress_loads_and_generates(folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    model = compress.from_pretrained(folder).eval()
    with torch.no_grad():
        assert found["logits"] == pytest.approx(model(IDS).logits.double().sum().item(), rel=1e-6)
    assert found["text"] == model.generate(IDS, max_new_tokens=8, do_sample=False).tolist()


def test_dtype_device_map_and_casts(folder):
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    constants = [p for n, p in half.named_parameters() if n.endswith("constants")]
    assert constants
    assert all(p.dtype == torch.float32 for p in constants)  # expressions keep their precision
    mapped = AutoModelForCausalLM.from_pretrained(folder, device_map="auto")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(mapped(IDS).logits, plain(IDS).logits)
        assert torch.isfinite(half(IDS).logits).all()
        assert torch.isfinite(half.float()(IDS).logits).all()


def test_other_heads_find_the_replaced_modules(folder):
    base = AutoModel.from_pretrained(folder)
    full = AutoModelForCausalLM.from_pretrained(folder)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    with torch.no_grad():
        torch.testing.assert_close(base(IDS).last_hidden_state, full.model(IDS).last_hidden_state)
    assert type(classifier.model.layers[0].self_attn.q_proj) is type(full.model.layers[0].self_attn.q_proj)


def test_gradients_reach_the_factors_and_the_constants(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model(IDS, labels=IDS).loss.backward()
    for name, parameter in model.named_parameters():
        if name.endswith(("basis", "constants")):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def changed(folder, tmp_path, change):
    """A copy of the checkpoint whose quantization_config went through `change`."""
    copy = tmp_path / "changed"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    change(config["quantization_config"])
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def first(plan, kind):
    return next(spec for spec in plan["modules"] if spec["kind"] == kind)


def deep(depth):
    tree = ["var", 0]
    for _ in range(depth):
        tree = ["neg", tree]
    return tree


HOSTILE = {
    "a newer format": (lambda p: p.update(format_version=99), "format_version 99"),
    "an unknown kind": (lambda p: first(p, "mean_mlp").update(kind="exec_mlp"), "unknown kind 'exec_mlp'"),
    "options of another kind": (
        lambda p: first(p, "mean_mlp")["options"].update(code="1"),
        "unknown key 'code'; allowed: outer, d_model",
    ),
    "a module that is not there": (lambda p: first(p, "mean_mlp").update(module="model.layers.9.mlp"), "does not have"),
    "a module twice": (lambda p: p["modules"].append(p["modules"][0]), "more than once"),
    "an unknown operation": (
        lambda p: first(p, "symbolic_mlp")["options"].update(expressions=[["__import__", ["var", 0]], ["var", 1]]),
        "__import__",
    ),
    "a deep tree": (
        lambda p: first(p, "symbolic_mlp")["options"].update(expressions=[deep(300), ["var", 1]]),
        "nested deeper than 130",
    ),
    "a tree too deep to print": (
        lambda p: first(p, "symbolic_mlp")["options"].update(expressions=[deep(110), ["var", 1]]),
        "nested deeper than 100",
    ),
    "a huge tree": (
        lambda p: first(p, "symbolic_mlp")["options"].update(expressions=[["add", *[["var", 0]] * 20_000], ["var", 1]]),
        "nodes",
    ),
    "a rank that is text": (
        lambda p: first(p, "low_rank_linear")["options"].update(rank="3"),
        "rank: Input should be a valid integer; given '3'",
    ),
    "code for a bias": (
        lambda p: first(p, "low_rank_linear")["options"].update(bias="print('x')"),
        "bias: Input should be a valid boolean; given",
    ),
    "code for a name": (lambda p: first(p, "mean_mlp")["options"].update(outer="a;b"), "outer: String should match pattern"),
    "a wrong arity": (
        lambda p: first(p, "symbolic_mlp")["options"].update(expressions=[["sin", ["var", 0], ["var", 1]], ["var", 1]]),
        "sin",
    ),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_plan_gets_a_clear_error(folder, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(changed(folder, tmp_path, change))
