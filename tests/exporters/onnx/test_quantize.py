"""Quantized graphs lie beside the float one, are smaller, and their distance from torch is reported."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
import torch
from long import long
from onnx_folders import folders

from compress.cli.tables import export_table
from compress.loading.quantizer import from_pretrained
from exporters.onnx import parity
from exporters.onnx.graph import export_onnx
from exporters.onnx.quantize import Quantization, quantize_graph, quantized_file
from exporters.onnx.runtime import CPU, OnnxModel


@pytest.mark.parametrize("name", ["llama", "gpt2", pytest.param("opt", marks=long)])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_smaller_and_close(
    name: str, quantization: Quantization, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    checkpoint, out = folders(name, tmp_path_factory)
    shutil.copy(out / "model.onnx", tmp_path)
    given = parity.reference(from_pretrained(checkpoint, dtype=torch.float32), range(1, 97))
    report = quantize_graph(tmp_path, quantization, given)
    assert report["file"] == quantized_file(quantization) == f"model_{quantization}.onnx"
    float_graph, graph = onnx.load(tmp_path / "model.onnx").graph, onnx.load(tmp_path / report["file"]).graph
    assert (tmp_path / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()
    assert report["float_matmuls"] == []
    assert report["quantized_matmuls"] == sum(node.op_type == "MatMul" for node in float_graph.node) > 8

    def weight_bytes(graph: onnx.GraphProto) -> int:
        return sum(len(onnx.numpy_helper.to_array(tensor).tobytes()) for tensor in graph.initializer)

    assert weight_bytes(graph) < weight_bytes(float_graph)
    ids = [list(range(1, 49))]
    exact = OnnxModel(tmp_path, threads=1).forward(ids)[0]
    error = OnnxModel(tmp_path, threads=1, file=report["file"]).forward(ids)[0] - exact
    assert (error**2).mean() < (0.25 if quantization == "int8" else 0.8) ** 2 * exact.var()
    assert report["parity"][CPU]["max_abs_difference"] > 0


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_graph_that_agrees_too_little_is_not_handed_over(
    quantization: Quantization, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    checkpoint, _ = folders("llama", tmp_path_factory)
    with pytest.raises(RuntimeError, match=rf"model_{quantization}\.onnx predicts .* below 100%; .* Try .*, or a lower agree"):
        export_onnx(checkpoint, tmp_path, quantize=quantization, agreement=1.0)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(ValueError, match="agreement: 85 given; it is a fraction of predictions, from 0 to 1"):
        export_onnx(checkpoint, tmp_path, quantize=quantization, agreement=85)


def test_every_graph_that_is_written_has_a_row_of_its_own() -> None:
    rows = {"max_abs_difference": 0.5, "max_abs_logit": 9.0, "top1_agreement": 0.9, "greedy_equal": 3, "greedy_tokens": 64}
    report = {
        "opset": 23,
        "bytes": {"model.onnx": 2**20, "model.onnx.data": 2**20, "model_int8.onnx": 2**20},
        "parity": {CPU: rows | {"greedy_equal": 64}, "CUDAExecutionProvider": {"not_run": "no kernel"}},
        "quantized": {"file": "model_int8.onnx", "parity": {CPU: rows}},
    }
    table = export_table({"onnx": report})
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert cells == [
        ("model.onnx (opset 23)", CPU, "2.0", "5.0e-01", "9.0", "90.0%", "64/64"),
        ("model.onnx (opset 23)", "CUDAExecutionProvider", "2.0", "", "", "", "not run here"),
        ("model_int8.onnx (opset 23)", CPU, "1.0", "5.0e-01", "9.0", "90.0%", "3/64"),
    ]


@long
def test_novella_keeps_its_tied_head_in_float_and_is_half_the_size(tmp_path: Path) -> None:
    """The head's matrix is the embedding, which is looked up in float: a quantized copy would be an addition."""
    report = export_onnx("novella", tmp_path, quantize="int8")
    parity = report["parity"][CPU]
    assert parity["max_abs_difference"] < 1e-4
    assert parity["greedy_equal"] == 64
    assert parity["greedy_distinct"] > 10
    assert report["quantized"]["float_matmuls"] == ["lm_head/MatMul"]
    assert report["quantized"]["parity"][CPU]["top1_agreement"] > 0.9
    assert report["bytes"]["model_int8.onnx"] < 0.55 * report["bytes"]["model.onnx"]
