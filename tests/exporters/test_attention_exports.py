"""Replaced attention in both exports: the same logits and tokens, the same cache; or an error that says what there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import RANK, random_plan, tiny_checkpoint, tiny_model, with_plan
from long import long

from compress.loading.quantizer import from_pretrained
from compress.plan import ModuleSpec, Plan
from exporters.onnx.graph import export_onnx
from exporters.onnx.runtime import OnnxModel
from exporters.torch.parity import load_standalone
from exporters.torch.source import export_pt2, export_torch

IDS = torch.arange(2 * 11).view(2, 11) * 7 % 89 + 1


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen2", "qwen3", "mistral", "phi3", "gpt_neox"])
def test_standalone_file_of_crystallized_attention(tmp_path: Path, model_type: str) -> None:
    tiny_checkpoint(tmp_path / "c", model_type, "crystallized_attention", "low_rank_linear")
    report = export_torch(tmp_path / "c", tmp_path / "o")  # raises where logits or greedy tokens differ
    assert report["greedy_agreement"] == 1.0
    assert "crystallize(" in (tmp_path / "o" / "model.py").read_text()


@pytest.mark.parametrize("model_type", ["gpt2", "mistral"])
def test_standalone_file_where_one_layer_is_crystallized(tmp_path: Path, model_type: str) -> None:
    model = tiny_model(model_type)
    plan = random_plan(model, "crystallized_attention")
    with_plan(tmp_path / "c", model, Plan(modules=plan.modules[1:]))
    export_torch(tmp_path / "c", tmp_path / "o")
    text = (tmp_path / "o" / "model.py").read_text()
    assert f"averaged={RANK}" in text
    assert "scaled_dot_product_attention" in text
    assert "the attention of layers 1 reads" in " ".join(text.split())
    exported = torch.export.load(export_pt2(tmp_path / "o")).module()
    found = exported(IDS)
    found = found[0] if isinstance(found, tuple) else found
    with torch.no_grad():
        expected = from_pretrained(tmp_path / "c", dtype=torch.float32)(IDS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("layers", [(0, 1), (1,)], ids=str)
def test_standalone_file_of_latent_attention(tmp_path: Path, model_type: str, layers: tuple[int, ...]) -> None:
    model = tiny_model(model_type)
    plan = random_plan(model, "latent_attention")
    with_plan(tmp_path / "c", model, Plan(modules=tuple(plan.modules[i] for i in layers)))
    report = export_torch(tmp_path / "c", tmp_path / "o")  # raises where logits or greedy tokens differ
    assert report["greedy_agreement"] == 1.0
    text = (tmp_path / "o" / "model.py").read_text()
    assert ("class Attention(" in text) == (len(layers) == 1)
    _, standalone = load_standalone(tmp_path / "o")
    _, cache = standalone(IDS)
    assert [tuple(t.shape) for t in cache[1]] == [(2, 1, 11, 2 * RANK), (2, 1, 11, 0)]
    export_pt2(tmp_path / "o")


def test_standalone_file_says_what_it_cannot_hold(tmp_path: Path) -> None:
    model = tiny_model("llama")
    q = ModuleSpec(
        module="model.layers.0.self_attn.q_proj",
        kind="low_rank_linear",
        options={"in_features": 32, "out_features": 32, "rank": RANK, "bias": True},
    )
    with_plan(tmp_path / "latent", model, Plan(modules=(*random_plan(model, "latent_attention").modules, q)))
    with pytest.raises(NotImplementedError, match="supported: original query and output projections"):
        export_torch(tmp_path / "latent", tmp_path / "o")
    tiny_checkpoint(tmp_path / "capped", "gemma2", "crystallized_attention")
    with pytest.raises(NotImplementedError, match="crystallized attention with capped scores"):
        export_torch(tmp_path / "capped", tmp_path / "o")


ONNX = [
    pytest.param("gpt2", "crystallized_attention", marks=long),
    pytest.param("mistral", "crystallized_attention", marks=long),
    pytest.param("llama", "latent_attention", marks=long),
    ("qwen3", "latent_attention"),
]


@pytest.mark.parametrize(("model_type", "kind"), ONNX)
def test_graph_computes_and_caches_the_same(tmp_path: Path, model_type: str, kind: str) -> None:
    tiny_checkpoint(tmp_path / "c", model_type, kind)
    export_onnx(tmp_path / "c", tmp_path / "o")  # raises beyond its tolerance, with a cache and left padding too
    model, graph = from_pretrained(tmp_path / "c", dtype=torch.float32), OnnxModel(tmp_path / "o", threads=1)
    with torch.no_grad():
        expected = model(IDS).logits.numpy()
        cached = model(IDS[:, :6], use_cache=True).past_key_values.layers[0]
    first, cache = graph.forward(IDS[:, :6])
    second, _ = graph.forward(IDS[:, 6:], past=cache)
    assert abs(first - expected[:, :6]).max() < 1e-4 * abs(expected).max()
    assert abs(second - expected[:, 6:]).max() < 1e-4 * abs(expected).max()
    assert [tuple(t.shape) for t in cache[:2]] == [tuple(cached.keys.shape), tuple(cached.values.shape)]
