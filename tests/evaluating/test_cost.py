"""Counts against counting by hand, against torch's own operator counter on a real forward, and against the files."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoints import D_FF, D_MODEL, FAMILIES, HEADS, KV_HEADS, LAYERS, RANK, SHARED_KINDS, VOCABULARY, tiny_checkpoint
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from compress import kinds
from compress.evaluating.cost import account, cache_bytes, cache_bytes_per_token, count_multiply_adds, skeleton, weight_bytes
from compress.kinds.contract import Kind, Positive, Work
from compress.loading.modules import apply_plan
from compress.plan import ModuleSpec, Plan, read_plan

HEAD_DIM = D_MODEL // HEADS
TOKENS = 8  # no more than the tiny models' window


def _load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval().requires_grad_(False)


def _counted(model, tokens):
    """Multiply-adds per token of the matrix products that a real forward of `tokens` dispatches, rotary tables aside."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    rotary = sum(value for name, value in by_module.items() if name.endswith("rotary_emb"))
    return (counter.get_total_flops() - rotary) / 2 / tokens


KINDS = [(), ("low_rank_linear",), ("pivoted_linear",), ("dense_linear",), ("affine_mlp", "mean_mlp")]


@pytest.mark.parametrize("kinds", [*KINDS, *((kind,) for kind in SHARED_KINDS)], ids="+".join)
@pytest.mark.parametrize("family", FAMILIES)
def test_multiply_adds_are_those_that_torch_dispatches(tmp_path, family, kinds):
    folder = tiny_checkpoint(tmp_path, family, *kinds)
    assert account(folder, TOKENS).multiply_adds.total == _counted(_load(folder), TOKENS)


def test_multiply_adds_of_a_llama_by_hand(tmp_path):
    got = account(tiny_checkpoint(tmp_path, "llama"), context=50).multiply_adds
    attention_linears = 2 * D_MODEL * D_MODEL + 2 * D_MODEL * KV_HEADS * HEAD_DIM
    assert got.linears == LAYERS * (attention_linears + 3 * D_MODEL * D_FF)
    assert got.head == D_MODEL * VOCABULARY
    assert got.attention == LAYERS * 2 * D_MODEL * 50
    assert got.programs == 0
    assert got.total == got.linears + got.head + got.attention


def test_attention_counts_no_further_than_its_window(tmp_path):
    folder = tiny_checkpoint(tmp_path / "all", "mistral")  # a window of 8
    assert account(folder, 100).multiply_adds.attention == account(folder, 8).multiply_adds.attention
    both = tiny_checkpoint(tmp_path / "mixed", "gemma2")  # one layer of two has a window of 8
    heads = HEADS * 16
    assert account(both, 100).multiply_adds.attention == 2 * heads * (100 + 8)


def test_parameters_and_what_is_kept_by_hand(tmp_path):
    dense = account(tiny_checkpoint(tmp_path / "dense", "llama"))
    got = account(tiny_checkpoint(tmp_path / "low", "llama", "affine_mlp"))
    mlp = 3 * D_MODEL * D_FF + 2 * D_FF + D_MODEL
    replaced = 2 * RANK * D_MODEL + D_MODEL
    assert dense.replaced_kept is None
    assert dense.model_kept == 1
    assert got.replaced_baseline == mlp
    assert got.parameters == dense.parameters - mlp + replaced
    assert got.replaced_kept == pytest.approx(replaced / mlp)
    assert got.model_kept == pytest.approx((dense.parameters - mlp + replaced) / dense.parameters)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_loaded_model(tmp_path, family):
    folder = tiny_checkpoint(tmp_path, family, "low_rank_linear", "mean_mlp")
    assert account(folder).parameters == sum(p.numel() for p in _load(folder).parameters())


def test_a_basis_is_stored_once_and_multiplied_once_per_input(tmp_path):
    kv = KV_HEADS * HEAD_DIM
    dense = account(tiny_checkpoint(tmp_path / "dense", "llama"))
    matrices = {  # kind → (stored by the replaced modules, multiplied per token), beside their biases
        "shared_linear": (LAYERS * RANK * (D_MODEL + 2 * kv), LAYERS * RANK * (D_MODEL + 2 * kv)),
        "shared_pivoted": (LAYERS * (RANK * (D_MODEL + 2 * kv - RANK) + 2 * kv), LAYERS * RANK * (D_MODEL + 2 * kv - RANK)),
        "shared_across": (RANK * (D_MODEL + LAYERS * kv), RANK * (LAYERS * D_MODEL + LAYERS * kv)),
    }
    for kind, (stored, multiplied) in matrices.items():
        got = account(tiny_checkpoint(tmp_path / kind, "llama", kind))
        roles = 1 if kind == "shared_across" else 2
        original = LAYERS * roles * D_MODEL * kv
        assert got.replaced_baseline == original + LAYERS * roles * kv
        assert dense.parameters - got.parameters == original - stored
        assert dense.multiply_adds.linears - got.multiply_adds.linears == original - multiplied


def test_an_inline_mlp_counts_as_one(tmp_path):
    got = account(tiny_checkpoint(tmp_path, "opt", "zero_mlp"))
    assert got.replaced_baseline == 2 * D_MODEL * D_FF + D_FF + D_MODEL
    assert got.replaced_kept == 0


class Counted(Kind):
    """Says what it costs: one that replaces an attention counts its own products with the past."""

    kind = "counted"
    replaces = "linear"
    runtime = nn.Identity
    each: Positive
    attends: bool

    def arguments(self):
        return {}

    def work(self, module, place):
        return Work(self.each * place.context, attends=self.attends)


def test_a_kind_is_asked_for_its_work_and_everything_inside_it_is_its_own(tmp_path):
    model = skeleton(tiny_checkpoint(tmp_path, "llama"))
    before = count_multiply_adds(model, Plan(), 10)
    names = {"model.layers.0.mlp.down_proj": (7, False), "model.layers.0.self_attn": (5, True)}
    plan = Plan(modules=tuple(Counted(each=each, attends=own).spec(name) for name, (each, own) in names.items()))
    kinds.registry.register("counted", Counted)
    try:
        after = count_multiply_adds(model, plan, 10)
    finally:
        kinds.registry.unregister("counted")
    assert after.attention == before.attention // 2
    inside = 2 * D_MODEL * (D_MODEL + KV_HEADS * HEAD_DIM)
    assert after.linears == before.linears - D_MODEL * D_FF + 70 - inside + 50


def test_a_symbolic_program_costs_its_operations_beside_its_projections(tmp_path):
    folder = tiny_checkpoint(tmp_path, "llama")
    model = skeleton(folder)
    square = ["mul", ["var", 0], ["var", 0]]
    options = {"outer": "down_proj", "d_model": D_MODEL, "inputs": 2, "outputs": 2, "affine": 3, "constants": 1, "clamp": True}
    options["expressions"] = [["add", square, ["param", 0]], ["exp", ["mul", square, ["var", 1]]]]  # the square once
    before = count_multiply_adds(model, Plan(), 10)
    plan = Plan(modules=(ModuleSpec(module="model.layers.0.mlp", kind="symbolic_mlp", options=options),))
    apply_plan(model, plan)
    after = count_multiply_adds(model, plan, 10)
    assert after.programs == 4
    assert before.linears - after.linears == 3 * D_MODEL * D_FF - 2 * (2 + 3) * D_MODEL


def test_bytes_are_those_of_the_weight_files(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen2")
    assert weight_bytes(folder) == (folder / "model.safetensors").stat().st_size
    (folder / "model.onnx").write_bytes(b"12345")
    (folder / "model.onnx.data").write_bytes(b"123")
    (folder / "notes.txt").write_bytes(b"1")
    assert weight_bytes(folder) == (folder / "model.safetensors").stat().st_size + 8


def test_cache_bytes_per_token_by_hand(tmp_path):
    model = _load(tiny_checkpoint(tmp_path, "llama"))

    def prefill(ids):
        with torch.no_grad():
            return model(ids, use_cache=True).past_key_values

    assert cache_bytes_per_token(prefill) == LAYERS * 2 * KV_HEADS * HEAD_DIM * 4


def test_cache_bytes_are_counted_in_every_container():
    tensor = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert cache_bytes([(tensor, tensor.float().numpy()), tensor]) == 12 + 24 + 12


def test_a_plan_is_read_from_config_json_and_others_are_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path, "llama", "zero_mlp")
    assert [spec.kind for spec in read_plan(folder).modules] == ["zero_mlp"]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match="quantized by 'gptq'"):
        read_plan(folder)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        read_plan(tmp_path / "nowhere")
