"""Pivoted linears in a graph: y = [p; weight @ p][order], p = basis @ x, without what onnxruntime does slowly.

Measured on one core, microseconds for 1 and for 256 tokens, rank giving 0.8 of the dense parameters:

    d_in × d_out     as torch writes it    order by rows    dense
    128 × 128             8  311              9    96        6    80
    512 × 512            25 2009             26  1214       21  1211
    1024 × 1024          85 6205             85  4685       91  5417
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

# d_in · d_out up to which one product by the dense matrix beats two products, a concatenation and a reordering.
FOLD_BELOW = 2**19


def gather_rows(model: ir.Model) -> None:
    """Reorder features as rows of tokens: Gather along the last axis copies number by number, ten times slower.

    (B, T, d) → transpose to (d, B, T) → gather → transpose back.
    """
    for gather in list(model.graph):
        # Features (B, T, d), reordered along d by a constant vector: nothing else is touched.
        x, order = gather.inputs[:2] if gather.op_type == "Gather" else (None, None)
        if x is None or x.shape is None or len(x.shape) != 3 or gather.attributes.get_int("axis", 0) not in (-1, 2):
            continue
        if order is None or order.const_value is None or len(order.const_value.shape) != 1:
            continue
        # Nodes are named by their metadata, which the new ones inherit.
        kept = gather.metadata_props
        rows = ir.node("Transpose", [x], {"perm": [2, 0, 1]}, metadata_props=kept)
        chosen = ir.node("Gather", [rows.outputs[0], order], {"axis": 0}, metadata_props=kept)
        back = ir.node("Transpose", [chosen.outputs[0]], {"perm": [1, 2, 0]}, metadata_props=kept)
        old = gather.outputs[0]
        ir.convenience.replace_nodes_and_values(model.graph, gather, [gather], [rows, chosen, back], [old], [back.outputs[0]])


def fold_small_pivots(model: ir.Model, below: int = FOLD_BELOW) -> int:
    """Let small pivoted linears become dense when the graph is loaded; return how many.

    The file keeps the factors; x @ ([basis, basis @ weight][order]), or the same without an order, has a part without x,
    which the runtime computes once. Run after `gather_rows`.
    """
    count = 0
    for joined in list(model.graph):
        outer = _maker(joined, "Concat", "MatMul", 1) if len(joined.inputs) == 2 else None
        inner = None if outer is None else _maker(outer, "MatMul", "MatMul")
        # The Concat must be [p; weight @ p] of one p, along the features.
        if outer is None or inner is None or joined.inputs[0] is not outer.inputs[0] or not _joins_features(joined):
            continue
        (x, basis), weight = inner.inputs, outer.inputs[1]
        d_in, rank, others = _length(basis), _length(weight), _length(weight, 1)
        if d_in is None or rank is None or others is None or d_in * (rank + others) >= below:
            continue
        if len(inner.outputs[0].uses()) > 2:  # a basis that others share is multiplied once for all of them
            continue
        product = ir.node("MatMul", [basis, weight], name=outer.name)
        columns = ir.node("Concat", [basis, product.outputs[0]], {"axis": 1}, name=joined.name)
        last, made = joined, [product, columns]
        # With the reordering, where it is there and nothing else reads between.
        if (ordering := _ordering(joined)) is not None:
            gather, last = ordering
            made.append(ir.node("Gather", [columns.outputs[0], gather.inputs[1]], {"axis": 1}, name=gather.name))
        made.append(ir.node("MatMul", [x, made[-1].outputs[0]], name=f"{outer.name}_dense"))
        old, new = last.outputs[0], made[-1].outputs[0]
        ir.convenience.replace_nodes_and_values(model.graph, last, [last], made, [old], [new])
        count += 1
    common.RemoveUnusedNodesPass()(model)
    return count


def _ordering(joined: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """Gather and last transpose of what `gather_rows` made, where that alone reads `joined`."""
    rows = _reader(joined, "Transpose")
    gather = None if rows is None else _reader(rows, "Gather")
    back = None if gather is None else _reader(gather, "Transpose")
    return None if gather is None or back is None else (gather, back)


def _joins_features(joined: ir.Node) -> bool:
    """Whether a Concat is along the last axis."""
    axis, shape = joined.attributes.get_int("axis"), joined.outputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _reader(node: ir.Node, wanted: str) -> ir.Node | None:
    """The only reader of a node's output, where it is a `wanted` node."""
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and uses[0].node.op_type == wanted else None


def _length(value: ir.Value | None, axis: int = 0) -> int | None:
    """One size of a constant matrix; None where `value` is none."""
    shape = None if value is None or value.const_value is None else value.const_value.numpy().shape
    return None if shape is None or len(shape) != 2 else int(shape[axis])


def _maker(node: ir.Node, op_type: str, wanted: str, position: int = 0) -> ir.Node | None:
    """The `wanted` node that makes one input of an `op_type` node."""
    if node.op_type != op_type or len(node.inputs) <= position:
        return None
    value = node.inputs[position]
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == wanted else None
