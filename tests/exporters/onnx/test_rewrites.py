"""Rewrites shorten a graph and change no result; equal tensors and nodes are merged, different ones are not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from exporters.onnx.passes import name_weights, share
from exporters.onnx.rewrites import group_queries, split_gemm, unflatten

REPEATED = """
<ir_version: 10, opset_import: ["" : 23]>
attend (float[B, 4, T, 8] q, float[B, 2, P, 8] k, float[B, 2, P, 8] v) => (float[B, 4, T, 8] y)
<int64[1] axis = {AXIS}, int64[1] two = {2}, int64[1] eight = {8}, int64[1] four = {4}> {
   b = Shape <start=0, end=1> (k)
   p = Shape <start=2, end=3> (k)
   wide = Concat <axis=0> (b, two, two, p, eight)
   flat = Concat <axis=0> (b, four, p, eight)
   k5 = Unsqueeze (k, axis)
   k6 = Expand (k5, wide)
   k7 = Reshape (k6, flat)
   v5 = Unsqueeze (v, axis)
   v6 = Expand (v5, wide)
   v7 = Reshape (v6, flat)
   y = Attention (q, k7, v7)
}
"""

FLATTENED = """
<ir_version: 10, opset_import: ["" : 23]>
conv1d (float[B, T, INPUT] x, float[8, 3] weight, float[3] bias) => (float[B, T, 3] y)
<int64[2] rows = {-1, 8}, int64[3] last = {0, 0, 3}> {
   s = Shape <start=0, end=2> (x)
   three = Constant <value = int64[1] {3}> ()
   target = Concat <axis=0> (s, three)
   flat = Reshape (x, rows)
   product = Gemm <ATTRIBUTES> (flat, weight, bias)
   y = Reshape (product, target)
}
"""


def parsed(text: str) -> onnx.ModelProto:
    """The model, with the shapes of its inner values."""
    return onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))


def run(model: onnx.ModelProto, *shapes: tuple[int, ...]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(1)
    feeds = {i.name: generator.normal(size=s).astype(np.float32) for i, s in zip(session.get_inputs(), shapes, strict=True)}
    return session.run(None, feeds)[0]


def types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_attention_reads_the_cached_heads_themselves() -> None:
    before = parsed(REPEATED.replace("AXIS", "2"))
    model = ir.from_proto(before)
    group_queries(model)
    assert types(model) == ["Attention"]
    shapes = ((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 8))
    np.testing.assert_array_equal(run(ir.to_proto(model), *shapes), run(before, *shapes))


def test_heads_repeated_in_another_order_stay_as_they_are() -> None:
    """Expanding in front of the heads tiles them, 0 1 0 1: not how Attention shares them."""
    model = ir.from_proto(parsed(REPEATED.replace("AXIS", "1")))
    count = len(types(model))
    group_queries(model)
    assert len(types(model)) == count


@pytest.mark.parametrize(("size", "shape"), [("8", (2, 5, 8)), ("2, 4", (2, 5, 2, 4))], ids=["tokens", "heads"])
def test_conv1d_becomes_matmul_and_add(size: str, shape: tuple[int, ...]) -> None:
    text = FLATTENED.replace("INPUT", size).replace("ATTRIBUTES", "alpha=1.0")
    before = parsed(text)
    model = ir.from_proto(before)
    unflatten(model)
    shapes = (shape, (8, 3), (3,))
    assert types(model) == (["Reshape"] if len(shape) == 4 else []) + ["MatMul", "Add"]
    np.testing.assert_allclose(run(ir.to_proto(model), *shapes), run(before, *shapes), rtol=1e-5, atol=1e-6)


def test_a_scaled_gemm_stays() -> None:
    model = ir.from_proto(parsed(FLATTENED.replace("INPUT", "8").replace("ATTRIBUTES", "alpha=0.5")))
    unflatten(model)
    assert "Gemm" in types(model)


def test_a_gemm_by_a_transposed_weight_becomes_matmul_and_add() -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        [
            onnx.numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w"),
            onnx.numpy_helper.from_array(np.ones(3, np.float32), "b"),
        ],
    )
    before = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    model = ir.from_proto(before)
    split_gemm(model)
    assert types(model) == ["MatMul", "Add"]
    assert sorted(model.graph.initializers) == ["b", "w.T"]
    np.testing.assert_allclose(run(ir.to_proto(model), (5, 4)), run(before, (5, 4)), rtol=1e-6)


def test_equal_tensors_and_products_are_merged_and_others_are_not() -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    other = weight.copy()
    other[1, 1] += 1e-6 * other[1, 1]  # no sampled element need differ
    nodes = [onnx.helper.make_node("MatMul", ["x", name], [f"y_{name}"]) for name in "abc"]
    nodes.append(onnx.helper.make_node("Sum", ["y_a", "y_b", "y_c"], ["y"]))
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [tensor("x", onnx.TensorProto.FLOAT, ["n", 3])],
        [tensor("y", onnx.TensorProto.FLOAT, ["n", 4])],
        [onnx.numpy_helper.from_array(v, n) for n, v in (("a", weight), ("b", weight), ("c", other))],
    )
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10))
    share(model)
    assert types(model) == ["MatMul", "MatMul", "Sum"]
    assert sorted(model.graph.initializers) == ["a", "c"]


def test_names_lose_the_wrappers_prefix_unless_taken() -> None:
    values = {name: ir.Value(name=name, const_value=ir.tensor(np.zeros(2, np.float32))) for name in ("model.a", "model.b", "b")}
    graph = ir.Graph([], [], nodes=[], initializers=list(values.values()), opset_imports={"": 23})
    name_weights(ir.Model(graph, ir_version=10), [])
    assert sorted(graph.initializers) == ["a", "b", "model.b"]
