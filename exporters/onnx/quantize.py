"""Weights of an exported float32 graph in 8 or 4 bits, by onnxruntime's own tools: a second graph beside the first."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import onnx

from exporters.onnx import parity
from exporters.onnx.runtime import CPU, MODEL_FILE

Quantization = Literal["int8", "int4"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)
# Of predictions on real text, how many must have the most likely token that torch has, for the graph to be handed over.
AGREEMENT: dict[str, float] = {"int8": 0.85, "int4": 0.7}
_BLOCK = 32  # input features that share a scale in int4: the smallest block onnxruntime takes, the most accurate


def quantized_file(quantization: Quantization) -> str:
    """The name of the quantized graph in an exported folder."""
    return f"model_{quantization}.onnx"


def quantize_graph(
    folder: Path, quantization: Quantization, given: parity.Reference | None, *, source: str = MODEL_FILE
) -> dict[str, Any]:
    """Write `folder`/model_int8.onnx or model_int4.onnx; return what stays float, and how far its logits are from those
    `given` by torch.

    int8: per output channel, activations quantized as they come (dynamic). int4: blocks of 32, weights only (MatMulNBits).
    `source` is the float graph in which weights are still weights (`pivots.fold_small_pivots` makes products of them).
    A tied head stays float: it is the embedding, which is looked up and so kept in any case.
    """
    target = folder / quantized_file(quantization)
    with _quiet("root", "onnxruntime.quantization.matmul_nbits_quantizer"):
        (_int8 if quantization == "int8" else _int4)(folder / source, target)
    graph = onnx.load(target, load_external_data=False).graph
    return {
        "kind": quantization,
        "file": target.name,
        "float_matmuls": _float_matmuls(graph),
        "quantized_matmuls": sum(
            node.op_type in ("MatMulNBits", "MatMulInteger", "DynamicQuantizeMatMul") for node in graph.node
        ),
        "parity": {} if given is None else {CPU: parity.compare(given, folder, CPU, file=target.name)},
    }


def disagreement(measured: Mapping[str, Any], wanted: float) -> str | None:
    """What is wrong with a quantized graph as `quantize_graph` reports it, in a sentence with its numbers, or None."""
    found = measured["parity"][CPU]
    if found["top1_agreement"] >= wanted:
        return None
    return (
        f"{measured['file']} predicts torch's most likely token in {found['top1_agreement']:.0%} of places, below "
        f"{wanted:.0%}; its greedy tokens part after {found['greedy_equal']} of {found['greedy_tokens']}"
    )


def _int8(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        # Unsigned as the activations are: processors without VNNI saturate sums of unsigned by signed products at 16 bits.
        weight_type=QuantType.QUInt8,
        use_external_data_format=_is_large(source),
        # The quantizer's own type inference does not know local functions.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def _int4(source: Path, target: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    # accuracy_level 4: the products are computed in int8.
    quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=4, block_size=_BLOCK, is_symmetric=False, accuracy_level=4)
    quantizer.process()
    written: Any = quantizer.model  # an ONNXModel after process()
    written.save_model_to_file(str(target), _is_large(source))


def _float_matmuls(graph: onnx.GraphProto) -> list[str]:
    """MatMuls by a weight, or by a weight that is transposed first: not those of attention."""
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {node.output[0] for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights}
    return [node.name for node in graph.node if node.op_type == "MatMul" and weights & set(node.input)]


def _is_large(source: Path) -> bool:
    return source.with_name(f"{source.name}.data").exists()


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """The tools tell of every node."""
    from onnxruntime.quantization import matmul_nbits_quantizer  # noqa: F401 - its import sets the level

    levels = {logging.getLogger(name): logging.getLogger(name).level for name in loggers}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
