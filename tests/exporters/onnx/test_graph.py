"""An exported folder computes what its checkpoint computes, and holds what its clients need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from checkpoints import D_FF, D_MODEL, FAMILIES, VOCABULARY, tiny_checkpoint
from long import long
from onnx_folders import CASES, FLOAT32, folders

from compress.loading.quantizer import from_pretrained
from exporters.onnx import graph as graph_export
from exporters.onnx.graph import export_onnx
from exporters.onnx.runtime import OnnxModel


def random_ids(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[long] * (name == "across")) for name in FLOAT32])
def test_logits_and_generation_are_those_of_transformers(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoint, out = folders(name, tmp_path_factory)
    model, graph = from_pretrained(checkpoint, dtype=torch.float32), OnnxModel(out, threads=1)
    ids = random_ids(4, 11)
    with torch.no_grad():
        expected = model(ids).logits.numpy()
    first, cache = graph.forward(ids[:, :6])
    second, _ = graph.forward(ids[:, 6:], past=cache)
    assert abs(first - expected[:, :6]).max() < 1e-4 * abs(expected).max()
    assert abs(second - expected[:, 6:]).max() < 1e-4 * abs(expected).max()
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[1, :3] = 0
    new = model.generate(ids[:2, :8] * mask, attention_mask=mask, max_new_tokens=20, do_sample=False)[:, 8:]
    assert len(set(new.flatten().tolist())) > 4  # a model that repeats itself would agree with much
    assert graph.generate_greedy(ids[:2, :8] * mask, 20, mask).tolist() == new.tolist()


@pytest.mark.parametrize("name", CASES)
def test_report_holds_parity_of_every_way_to_use_a_cache(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    report = json.loads((folders(name, tmp_path_factory)[1] / "export.json").read_text())
    half = report["dtype"] == "float16"
    measured = report["parity"]["CPUExecutionProvider"]
    assert set(measured["cases"]) == {"prompt", "left_padded", "step", "chunk"}
    assert (measured["torch_rounding"] > 0) == half
    limit = measured["torch_rounding"] + (2e-2 if half else 1e-4) * measured["max_abs_logit"]
    assert 0 < measured["max_abs_difference"] < limit
    assert measured["greedy_tokens"] == 64
    assert half or measured["greedy_equal"] == 64
    assert report["opset"] == CASES[name].options.get("opset", 23)


@pytest.mark.parametrize("name", CASES)
def test_graph_has_optimum_names_and_free_sizes_and_no_metadata(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = onnx.load(folders(name, tmp_path_factory)[1] / "model.onnx")
    sizes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    cache = [f"past_key_values.{i}.{part}" for i in (0, 1) for part in ("key", "value")]
    assert set(sizes) == {"input_ids", "attention_mask", "position_ids", *cache}
    assert sizes["input_ids"] == ["batch_size", "sequence_length"]
    assert sizes["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert sizes[cache[0]][0] == "batch_size"
    assert sizes[cache[0]][2] == "past_sequence_length"
    assert [v.name for v in model.graph.output] == ["logits", *(n.replace("past_key_values", "present") for n in cache)]
    assert {o.domain: o.version for o in model.opset_import}[""] == CASES[name].options.get("opset", 23)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_weights_keep_the_checkpoints_names(tmp_path_factory: pytest.TempPathFactory) -> None:
    graph = onnx.load(folders("llama", tmp_path_factory)[1] / "model.onnx").graph
    names = {tensor.name for tensor in graph.initializer}
    assert {"model.layers.1.self_attn.q_proj.weight.T", "model.layers.1.self_attn.q_proj.basis.T"} <= names
    assert {"model.embed_tokens.weight", "lm_head.weight.T", "model.layers.0.input_layernorm.weight"} <= names
    assert any(node.name == "model.layers.1.self_attn.o_proj/MatMul" for node in graph.node)


def test_a_basis_that_three_factors_share_is_stored_and_multiplied_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    graph = ir.load(folders("llama", tmp_path_factory)[1] / "model.onnx").graph

    def bases(layer: int) -> set[str]:
        stem = f"model.layers.{layer}.self_attn."
        roles = [f"{stem}{role}_proj.basis.T" for role in "qkv"]
        return {role for role in roles if role in graph.initializers}

    assert len(bases(0)) == 1
    assert len(bases(1)) == 3
    [product] = [use.node for use in graph.initializers[bases(0).pop()].uses()]
    assert len(product.outputs[0].uses()) == 3


@pytest.mark.parametrize(("name", "readers"), [("shared", ["0.k", "1.k"]), ("across", ["0.v 1.v"])])
def test_a_shared_basis_is_stored_once_and_multiplied_once_per_input(
    name: str, readers: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = onnx.load(folders(name, tmp_path_factory)[1] / "model.onnx").graph
    bases = [t.name for t in graph.initializer if "_proj.basis" in t.name]
    stem = "model.layers.{}.self_attn.{}_proj"
    expected = {}
    for places in readers:
        names = [stem.format(*place.split(".")) for place in places.split()]
        expected[f"{names[0]}.basis.T"] = [f"{n}/MatMul" for n in names]
    assert sorted(bases) == sorted(expected)
    assert {basis: [n.name for n in graph.node if basis in n.input] for basis in bases} == expected


def test_a_bias_kept_in_the_weight_has_its_own_name_in_the_graph(tmp_path_factory: pytest.TempPathFactory) -> None:
    tensors = {t.name: list(t.dims) for t in onnx.load(folders("across", tmp_path_factory)[1] / "model.onnx").graph.initializer}
    assert tensors["model.layers.0.mlp.down_proj.weight.T"] == [D_FF, D_MODEL]
    assert tensors["model.layers.0.mlp.down_proj.bias"] == [D_MODEL]


def test_folder_holds_what_clients_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    out = folders("llama", tmp_path_factory)[1]
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert not {"quantization_config", "auto_map"} & set(config)  # an older transformers would stop at either
    assert (out / "generation_config.json").is_file()
    genai = json.loads((out / "genai_config.json").read_text())
    decoder = genai["model"]["decoder"]
    assert (decoder["num_key_value_heads"], decoder["head_size"], decoder["num_hidden_layers"]) == (2, 8, 2)
    assert genai["search"]["past_present_share_buffer"] is False
    assert not list(out.glob(".export*"))


@pytest.fixture
def traced(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ir.Model]:
    """The qwen2 checkpoint, with its graph in place of a new trace."""
    checkpoint, out = folders("qwen2", tmp_path_factory)
    graph = ir.load(out / "model.onnx")
    monkeypatch.setattr(graph_export, "trace", lambda model, opset: graph)
    return checkpoint, graph


def test_a_wrong_graph_is_an_error_with_numbers_and_is_not_written(traced: tuple[Path, ir.Model], tmp_path: Path) -> None:
    checkpoint, graph = traced
    weight = graph.graph.initializers["model.layers.1.self_attn.q_proj.basis.T"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * 1.01)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError, match=r"CPUExecutionProvider: logits differ by \d.*above.*left_padded"):
        export_onnx(checkpoint, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]  # what was there before is still there


def test_large_weights_lie_outside_the_protobuf(
    traced: tuple[Path, ir.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_export, "EXTERNAL_ABOVE", 1000)
    report = export_onnx(traced[0], tmp_path)
    assert set(report["bytes"]) == {"model.onnx", "model.onnx.data"}
    assert report["bytes"]["model.onnx.data"] > 20_000
    assert OnnxModel(tmp_path, threads=1).n_layers == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, "opset 17 cannot be written; there are 18, 20"),
        ({"dtype": "float8"}, "unknown dtype 'float8'; there are float32, float16, bfloat16"),
        ({"quantize": "int2"}, "unknown quantization 'int2'; there are int8, int4"),
        ({"quantize": "int8", "dtype": "float16"}, "int8 is made from a float32 graph, not float16"),
        ({"agreement": 0.9}, "agreement: 0.9 given; a quantized graph is judged by it: give quantize too"),
    ],
)
def test_impossible_options_are_answered_before_anything_is_read(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_onnx(tmp_path / "missing", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_progress_reaches_its_total(traced: tuple[Path, ir.Model], tmp_path: Path) -> None:
    seen: list[Any] = []

    def progress(description: str, total: int) -> Any:
        seen.append((description, total))
        return lambda: seen.append(None)

    export_onnx(traced[0], tmp_path, verify=False, progress=progress)
    assert seen[0] == ("export onnx", seen.count(None))


@long
@pytest.mark.parametrize("kinds", [(), ("low_rank_linear", "symbolic_mlp"), ("pivoted_linear", "affine_mlp")], ids="-".join)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_architecture(model_type: str, kinds: tuple[str, ...], tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", model_type, *kinds)
    report = export_onnx(checkpoint, tmp_path / "out", quantize="int8")
    assert report["parity"]["CPUExecutionProvider"]["greedy_equal"] == 64


@long
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("opset", [18, 20, 21, 22, 24, 25])
def test_every_opset(opset: int, dtype: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "qwen2", "low_rank_linear", "symbolic_mlp")
    report = export_onnx(checkpoint, tmp_path / "out", opset=opset, dtype=dtype)
    measured = report["parity"]["CPUExecutionProvider"]
    assert ("not_run" in measured) == (dtype == "bfloat16")
