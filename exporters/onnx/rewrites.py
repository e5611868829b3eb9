"""What transformers writes for torch's sake, undone where ONNX has a shorter word for it. Nothing here changes a result."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common


def group_queries(model: ir.Model) -> None:
    """Feed Attention the cached heads themselves: it shares each among its queries, where transformers repeats them beforehand.

    Saves copies of the whole cache: a fifth of a decode step of a small model, bit for bit the same.
    """
    for node in model.graph:
        if node.op_type == "Attention" and node.domain == "":
            key, value = (_unrepeated(node.inputs[i]) for i in (1, 2))
            if key is not None and value is not None:
                node.replace_input_with(1, key)
                node.replace_input_with(2, value)
    common.RemoveUnusedNodesPass()(model)


def _unrepeated(value: ir.Value | None) -> ir.Value | None:
    """x (B, heads, T, D) where `value` is `repeat_kv(x)`: unsqueeze to (B, heads, 1, T, D), expand, reshape to n · heads."""
    # From the last operation of repeat_kv back to the first.
    for op_type in ("Reshape", "Expand", "Unsqueeze"):
        node = None if value is None else value.producer()
        if node is None or node.op_type != op_type:
            return None
        value, shape_or_axes = node.inputs
    # The last node read is the Unsqueeze, whose axes say what was repeated.
    axes = None if shape_or_axes is None else shape_or_axes.const_value
    repeats_heads = axes is not None and axes.numpy().tolist() == [2]
    return value if repeats_heads and value is not None and value.shape is not None and len(value.shape) == 4 else None


def unflatten(model: ir.Model) -> None:
    """Conv1D's flatten → Gemm → restore as MatMul and Add on (B, T, d_in): fewer nodes, and quantizers know MatMul."""
    for restore in list(model.graph):
        gemm = _producer(restore, "Reshape", "Gemm")
        flatten = None if gemm is None else _producer(gemm, "Gemm", "Reshape")
        if gemm is None or flatten is None or not _is_plain(gemm) or len(gemm.outputs[0].uses()) != 1:
            continue
        x, y = flatten.inputs[0], restore.outputs[0]
        # The two reshapes must give back the dimensions (B, T) that they took.
        if x is None or x.shape is None or y.shape is None or len(y.shape) != 3 or x.shape[:2] != y.shape[:2]:
            continue
        made = []
        if len(x.shape) != 3:  # (B, T, heads, head_dim): two reshapes that the exporter merged
            made.append(ir.node("Reshape", [x, _heads_joined(model.graph)], metadata_props=flatten.metadata_props))
            x = made[0].outputs[0]
        made += _linear(gemm, x, gemm.inputs[1])
        ir.convenience.replace_nodes_and_values(model.graph, restore, [restore], made, [y], [made[-1].outputs[0]])
    common.RemoveUnusedNodesPass()(model)


def split_gemm(model: ir.Model) -> None:
    """A linear of rank-2 tokens, Gemm by a transposed weight, as MatMul and Add: quantizers mistake the shape of such a weight.

    onnxruntime makes one Gemm of the two again when it loads the graph.
    """
    for gemm in list(model.graph):
        weight = gemm.inputs[1] if gemm.op_type == "Gemm" else None
        # A weight with other readers would have to be stored both ways round.
        if weight is None or not _is_plain(gemm, transposed=True) or weight.const_value is None or len(weight.uses()) != 1:
            continue
        matrix = ir.tensor(weight.const_value.numpy().T, name=f"{weight.name}.T")
        turned = ir.Value(name=matrix.name, const_value=matrix, type=weight.type, shape=ir.Shape(matrix.numpy().shape))
        model.graph.register_initializer(turned)
        made = _linear(gemm, gemm.inputs[0], turned)
        old = gemm.outputs[0]
        ir.convenience.replace_nodes_and_values(model.graph, gemm, [gemm], made, [old], [made[-1].outputs[0]])
    common.RemoveUnusedNodesPass()(model)


def _producer(node: ir.Node, op_type: str, wanted: str) -> ir.Node | None:
    """The `wanted` node that makes the first input of an `op_type` node."""
    given = node.inputs[0] if node.op_type == op_type and node.inputs else None
    producer = None if given is None else given.producer()
    return producer if producer is not None and producer.op_type == wanted else None


def _linear(gemm: ir.Node, x: ir.Value | None, weight: ir.Value | None) -> list[ir.Node]:
    """x @ weight, plus the bias of `gemm` where it has one."""
    made = [ir.node("MatMul", [x, weight], metadata_props=gemm.metadata_props)]
    if len(gemm.inputs) == 3 and gemm.inputs[2] is not None:
        made.append(ir.node("Add", [made[0].outputs[0], gemm.inputs[2]], metadata_props=gemm.metadata_props))
    return made


def _is_plain(gemm: ir.Node, *, transposed: bool = False) -> bool:
    """x @ weight (+ bias), or x @ weight.T (+ bias) where `transposed`, not scaled."""
    as_wanted = gemm.attributes.get_int("transA", 0) == 0 and gemm.attributes.get_int("transB", 0) == int(transposed)
    scaled = any(gemm.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    return as_wanted and not scaled


def _heads_joined(graph: ir.Graph) -> ir.Value:
    """The constant shape (B, T, everything else), made once."""
    name = "heads_joined"
    if name not in graph.initializers:
        # In Reshape, 0 keeps a dimension, −1 is what is left.
        shape = ir.tensor([0, 0, -1], dtype=ir.DataType.INT64, name=name)
        graph.register_initializer(ir.Value(name=name, const_value=shape, type=ir.TensorType(shape.dtype), shape=ir.Shape([3])))
    return graph.initializers[name]
