"""A traced graph made small and readable: equal tensors and products once, names from the model, no stack traces."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from exporters.onnx.pivots import gather_rows
from exporters.onnx.rewrites import group_queries, split_gemm, unflatten

_SCOPES = "pkg.torch.onnx.name_scopes"
_FX_NODE = "pkg.torch.onnx.fx_node"
_WRAPPER = "model."  # the attribute under which the tracing wrapper holds the model


def tidy(model: ir.Model, parameters: Iterable[str], *, inline_functions: bool = False) -> None:
    """All of this file, in place. `parameters` are the names of the model's own parameters and buffers."""
    if inline_functions:
        common.InlinePass()(model)
    share(model)
    group_queries(model)
    unflatten(model)
    split_gemm(model)
    gather_rows(model)
    # Names last, since they are read from what the trace left in the metadata, which then goes.
    name_nodes(model)
    name_weights(model, parameters)
    common.ClearMetadataAndDocStringPass()(model)


def share(model: ir.Model) -> None:
    """Equal initializers become one, then equal nodes: a basis that several factors read is stored and multiplied once."""
    _share_initializers(model.graph)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)


def _share_initializers(graph: ir.Graph) -> None:
    """onnx_ir's own pass cannot hash the exporter's transposed views. A few spread bytes tell most tensors apart."""
    kept: dict[tuple[Any, ...], list[ir.Value]] = {}
    for name, value in list(graph.initializers.items()):
        # An output keeps a value of its own; without a constant there is nothing to compare.
        if value.const_value is None or value.is_graph_output():
            continue
        array = value.const_value.numpy()
        key = (value.const_value.dtype, array.shape, array.flat[:: max(array.size // 64, 1)].tobytes())
        for other in kept.setdefault(key, []):
            if other.const_value is not None and other.const_value.tobytes() == value.const_value.tobytes():
                ir.convenience.replace_all_uses_with(value, other)
                del graph.initializers[name]
                break
        else:
            kept[key].append(value)


def name_nodes(model: ir.Model) -> None:
    """`model.layers.0.self_attn.q_proj/MatMul`: what a profile and a viewer show."""
    seen: Counter[str] = Counter()
    for node in model.graph:
        scope = _scope(node)
        name = f"{scope}/{node.op_type}" if scope else node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def name_weights(model: ir.Model, parameters: Iterable[str]) -> None:
    """Give weights the checkpoint's names: the exporter prefixes its wrapper's, and numbers what it transposed (here `….T`)."""
    # torch.export's name of a parameter → the parameter's: a prefix, and underscores for dots.
    mangled = {"p_model_" + name.replace(".", "_"): name for name in parameters}
    taken = set(model.graph.initializers)
    for old, value in list(model.graph.initializers.items()):
        new = old.removeprefix(_WRAPPER)
        # A constant that was folded has a number for a name; what it was made of is in the metadata of its readers.
        if re.fullmatch(r"val_\d+", old):
            new = _transposed(value, mangled) or old
        if new != old and new not in taken:
            taken.add(new)
            value.name = new


def _transposed(value: ir.Value, mangled: dict[str, str]) -> str | None:
    """`NAME.T` where the node that reads a folded matrix was traced from an operation on exactly one matrix parameter."""
    if value.shape is None or len(value.shape) != 2:
        return None
    for node in value.consumers():
        read = [mangled[p] for p in re.findall(r"%(p_\w+)", node.metadata_props.get(_FX_NODE, "")) if p in mangled]
        matrices = [name for name in read if not name.endswith("bias")]
        if len(matrices) == 1:
            return f"{matrices[0]}.T"
    return None


def _scope(node: ir.Node) -> str:
    """The module a node was traced from: the metadata holds the list ['', 'model', 'model.layers.0', …, 'linear'] as text."""
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get(_SCOPES, ""))
    # The last entry is the operation itself.
    inner = [s for s in scopes[:-1] if s.startswith(_WRAPPER)]
    return inner[-1].removeprefix(_WRAPPER) if inner else ""
