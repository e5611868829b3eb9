"""Pivoted linears run fast in onnxruntime, compute the same, and stay factored in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_folders import folders

from exporters.onnx.pivots import fold_small_pivots, gather_rows

D_IN, D_OUT, RANK = 6, 9, 4


def pivoted(*, also_read: bool = False, reorder: bool = True) -> onnx.ModelProto:
    """y = [p; weight @ p][order] as torch traces it; `also_read` gives p another reader, as a shared basis has."""
    generator = np.random.default_rng(0)
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    constants = {
        "basis": generator.normal(size=(D_IN, RANK)).astype(np.float32),
        "weight": generator.normal(size=(RANK, D_OUT - RANK)).astype(np.float32),
        **({"order": generator.permutation(D_OUT).astype(np.int32)} if reorder else {}),
    }
    nodes = [
        node("MatMul", ["x", "basis"], ["p"], "inner"),
        node("MatMul", ["p", "weight"], ["rest"], "outer"),
        node("Concat", ["p", "rest"], ["joined"], "joined", axis=-1),
        node("Gather", ["joined", "order"], ["ordered"], "gather", axis=-1)
        if reorder
        else node("Identity", ["joined"], ["ordered"]),
        node("Relu" if also_read else "Identity", ["p" if also_read else "ordered"], ["other"]),
        node("Identity", ["ordered"], ["y"]),
    ]
    outputs = [tensor("y", onnx.TensorProto.FLOAT, ["b", "t", D_OUT])]
    if also_read:
        outputs.append(tensor("other", onnx.TensorProto.FLOAT, ["b", "t", RANK]))
    x = tensor("x", onnx.TensorProto.FLOAT, ["b", "t", D_IN])
    initializers = [onnx.numpy_helper.from_array(v, n) for n, v in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", [x], outputs, initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(1).normal(size=(2, 3, D_IN)).astype(np.float32)})


def test_order_is_applied_to_rows() -> None:
    before = pivoted()
    model = ir.from_proto(before)
    gather_rows(model)
    [gather] = [node for node in model.graph if node.op_type == "Gather"]
    assert gather.attributes.get_int("axis") == 0
    np.testing.assert_array_equal(run(ir.to_proto(model))[0], run(before)[0])


@pytest.mark.parametrize("reorder", [True, False])
def test_a_small_one_is_dense_once_loaded_and_factored_in_the_file(tmp_path: Path, reorder: bool) -> None:
    before = pivoted(reorder=reorder)
    model = ir.from_proto(before)
    gather_rows(model)
    assert fold_small_pivots(model) == 1
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    np.testing.assert_allclose(run(after)[0], run(before)[0], rtol=1e-5, atol=1e-6)
    assert sorted(tensor.name for tensor in after.graph.initializer) == ["basis", *(["order"] if reorder else []), "weight"]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(after.SerializeToString(), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(tmp_path / "loaded.onnx").graph
    assert [node.op_type for node in loaded.node] == ["MatMul"]


def test_a_concatenation_along_another_axis_is_left_alone() -> None:
    model = ir.from_proto(pivoted(reorder=False))
    [joined] = [node for node in model.graph if node.op_type == "Concat"]
    joined.attributes["axis"] = ir.AttrInt64("axis", 1)
    assert fold_small_pivots(model) == 0


def test_one_whose_basis_others_share_keeps_its_products() -> None:
    model = ir.from_proto(pivoted(also_read=True))
    gather_rows(model)
    assert fold_small_pivots(model) == 0


def test_a_large_one_keeps_its_two_products() -> None:
    model = ir.from_proto(pivoted())
    gather_rows(model)
    assert fold_small_pivots(model, below=D_IN * D_OUT) == 0
    assert fold_small_pivots(model, below=D_IN * D_OUT + 1) == 1


def test_every_pivoted_linear_of_a_model_is_found(tmp_path_factory: pytest.TempPathFactory) -> None:
    graph = onnx.load(folders("qwen2", tmp_path_factory)[1] / "model.onnx").graph
    folded = [node.name for node in graph.node if node.name.endswith("_dense")]
    assert folded == [  # q of both layers, down of the first; the MLP of the second is a mean
        "model.layers.0.self_attn.q_proj/MatMul_2_dense",
        "model.layers.0.mlp.down_proj/MatMul_2_dense",
        "model.layers.1.self_attn.q_proj/MatMul_2_dense",
    ]
