"""A checkpoint as a folder that onnxruntime, optimum and onnxruntime-genai load; agreement with torch is part of the export.

checkpoint ──from_pretrained──► torch model ──trace──► graph ──tidy──► model.onnx (+ .data) ──check, compare──► export.json
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir
import torch

from compress.checkpoint.config import load_config
from compress.checkpoint.disk import remove_tree
from compress.checkpoint.files import hash_json, write_json
from compress.checkpoint.locate import TOKENIZER_FILES, locate
from compress.checkpoint.shards import Shards
from compress.checkpoint.swap import replacing
from compress.checkpoint.writer import copy_tokenizer
from compress.data import resolve_model
from compress.loading.quantizer import from_pretrained
from compress.plan import read_plan
from compress.progress import Progress, silent
from compress.reading import json_text
from exporters.onnx import parity, passes
from exporters.onnx.genai import genai_config
from exporters.onnx.pivots import fold_small_pivots
from exporters.onnx.quantize import AGREEMENT, QUANTIZATIONS, Quantization, disagreement, quantize_graph, quantized_file
from exporters.onnx.runtime import CPU, MODEL_FILE, available_providers
from exporters.onnx.surrogates import attach, surrogates_as_functions
from exporters.onnx.trace import cache_shapes, check_opset, prepare, refuse_growing_positions, takes_positions, trace

DType = Literal["float32", "float16", "bfloat16"]

EXPORT_VERSION = 1
# Larger weights go to model.onnx.data, which onnxruntime maps instead of parsing. (A protobuf cannot exceed 2 GiB at all.)
EXTERNAL_ABOVE = 256 * 1024**2
_UNFOLDED = "unfolded.onnx"  # what quantizers read: they want weights, not products of weights
_STAGES = ("load", "trace", "write", "check", "compare", "quantize")
_VERSIONS = ("compress", "torch", "transformers", "onnx", "onnxruntime", "onnxscript")


def export_onnx(
    checkpoint: Path | str,
    out: Path,
    *,
    dtype: DType = "float32",
    opset: int = 23,
    quantize: Quantization | None = None,
    inline_functions: bool = False,
    verify: bool = True,
    tolerance: float | None = None,
    agreement: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `out`/model.onnx with KV cache in and out, and what its clients read; return the report, also in `out`/export.json.

    Args:
        checkpoint: a compressed or a plain HuggingFace folder.
        out: the folder to write; it appears complete, or (on an error) not at all, or as it was.
        dtype: of weights and cache; logits are float32. onnxruntime's CPU provider has no bfloat16.
        opset: 23 has native attention, normalization and rotary embedding; 20 suits older runtimes.
        quantize: "int8" or "int4" MatMuls in a second graph, model_int8.onnx or model_int4.onnx, which genai_config.json then
            names; it is judged by `agreement`.
        inline_functions: leave no local functions in the graph, for runtimes that refuse them (OpenVINO).
        verify: compare every graph with torch, on every provider here.
        tolerance: allowed |Δlogit| / max(1, |logit|); by default 1e-4 in float32, 2e-2 in float16, 1e-1 in bfloat16. In half
            precision what torch itself loses against float32 arithmetic on the same weights is allowed in addition.
        agreement: of predictions on real text, the fraction in which a quantized graph must have torch's most likely token; by
            default 0.85 in int8 and 0.7 in int4.
        progress: called with a description and the number of stages.

    Raises ValueError for options that cannot be, RuntimeError where a graph that would be handed over and torch disagree,
    FileExistsError where a file that compress did not write is in the way.
    """
    check_options(dtype, opset, quantize, agreement)
    source = locate(resolve_model(str(checkpoint)))
    refuse_growing_positions(load_config(source))
    clock = _Clock(progress)
    _sweep_stages(out)
    with replacing(out, "onnx", _names(source, out)) as stage:
        with clock("load"):
            model = from_pretrained(source, dtype=getattr(torch, dtype)).eval()
            prepare(model, read_plan(source))
            layers = cache_shapes(model)
        # Programs are traced as calls of functions, whose bodies are put in afterwards.
        with clock("trace"), surrogates_as_functions(model) as programs:
            graph = trace(model, opset)
        attach(graph, programs)
        passes.tidy(graph, _parameters(model), inline_functions=inline_functions)
        with clock("write"):
            if quantize:
                # Before the folding, which works in place.
                _save(graph, stage / _UNFOLDED)
            folded = fold_small_pivots(graph)
            _save(graph, stage / MODEL_FILE)
            _write_configs(source, stage)
            file = quantized_file(quantize) if quantize else MODEL_FILE
            write_json(stage / "genai_config.json", genai_config(model, layers, positions=takes_positions(model), file=file))
        with clock("check"):
            onnx.checker.check_model(stage / MODEL_FILE, full_check=True)  # by path: beyond 2 GiB nothing else works
        report: dict[str, Any] = {
            "export_version": EXPORT_VERSION,
            "source": source_fingerprint(source),
            "model_type": model.config.model_type,
            "dtype": dtype,
            "opset": graph.opset_imports[""],
            "nodes": len(graph.graph),
            "functions": [name for _, name, _ in graph.functions],
            "folded_at_load": folded,
        }
        with clock("compare"):
            given = _reference(model, source) if verify else None
            if given:
                report["tolerance"] = parity.TOLERANCE[dtype] if tolerance is None else tolerance
                report["parity"] = _judged(given, stage, dtype, report["tolerance"])
        with clock("quantize"):
            if quantize:
                report["quantized"] = quantize_graph(stage, quantize, given, source=_UNFOLDED)
                for path in stage.glob(f"{_UNFOLDED}*"):
                    path.unlink()
                report["quantized"]["agreement"] = AGREEMENT[quantize] if agreement is None else agreement
                if given and (found := disagreement(report["quantized"], report["quantized"]["agreement"])):
                    other = "int8, or none" if quantize == "int4" else "int4, which leaves activations alone, or none"
                    raise RuntimeError(
                        f"the {quantize} graph does not say what the checkpoint says: {found}. Nothing was written. "
                        f"Try {other}, or a lower agreement if you can accept it"
                    )
        report |= {
            "bytes": {path.name: path.stat().st_size for path in sorted(stage.glob("*.onnx*"))},
            "seconds": clock.seconds,
            "versions": {name: version(name) for name in _VERSIONS},
        }
        write_json(stage / "export.json", report)
    return report


def check_options(dtype: str, opset: int, quantize: str | None, agreement: float | None) -> None:
    """Raises ValueError for options that cannot be, before anything is read."""
    if dtype not in parity.TOLERANCE:
        raise ValueError(f"unknown dtype {dtype!r}; there are {', '.join(parity.TOLERANCE)}")
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise ValueError(f"unknown quantization {quantize!r}; there are {', '.join(QUANTIZATIONS)}")
    if quantize is not None and dtype != "float32":
        raise ValueError(f"{quantize} is made from a float32 graph, not {dtype}; leave the dtype out")
    if agreement is not None and quantize is None:
        raise ValueError(f"agreement: {agreement} given; a quantized graph is judged by it: give quantize too, or leave it out")
    if agreement is not None and not 0 <= agreement <= 1:
        raise ValueError(f"agreement: {agreement} given; it is a fraction of predictions, from 0 to 1")
    check_opset(opset)


def _reference(model: Any, source: Path) -> parity.Reference:
    front, tokens = parity.passage_tokens(source, model.config.vocab_size)
    return parity.reference(model, tokens, front)


def _judged(given: parity.Reference, folder: Path, dtype: str, tolerance: float) -> dict[str, Any]:
    """Comparisons by provider. Raises RuntimeError naming the numbers of every breach."""
    measured: dict[str, Any] = {}
    breaches = []
    for provider in available_providers():
        try:
            measured[provider] = parity.compare(given, folder, provider)
        except Exception as error:
            if provider == CPU and dtype == "float32":
                raise
            # Only loading the graph shows that a provider has no kernels for a half precision, or lacks its libraries.
            measured[provider] = {"not_run": str(error).splitlines()[0]}
            continue
        if found := parity.breach(measured[provider], provider, dtype, tolerance):
            breaches.append(found)
    if breaches:
        raise RuntimeError(
            f"the exported graph does not compute what the checkpoint computes: {'; '.join(breaches)}. Nothing was written. "
            "Try another opset, a larger tolerance if you can accept it, or verify=False to look at the graph"
        )
    return measured


def _save(graph: ir.Model, path: Path) -> None:
    size = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)
    ir.save(graph, path, external_data=f"{path.name}.data" if size > EXTERNAL_ABOVE else None)


def _write_configs(source: Path, out: Path) -> None:
    """config.json of the plain architecture (a client's own transformers knows no plan), generation config and tokenizer."""
    config = json_text.read(source / "config.json")
    for key in ("quantization_config", "auto_map"):
        config.pop(key, None)
    write_json(out / "config.json", config)
    copy_tokenizer(source, out)
    tokenizer = out / "tokenizer_config.json"
    if tokenizer.is_file():
        declared = json_text.read(tokenizer)
        if declared.get("tokenizer_class") == "TokenizersBackend":  # the name of transformers 5 for the same thing
            write_json(tokenizer, declared | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _parameters(model: torch.nn.Module) -> list[str]:
    # Every name of a tied weight: the trace may know it by any of them.
    return [*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers())]


def source_fingerprint(folder: Path) -> str:
    """What a graph is of: a model's weights and plan."""
    return hash_json([Shards(folder).fingerprint(), read_plan(folder).to_json()])


def _names(source: Path, out: Path) -> list[str]:
    """The files of the export, as far as they are known before it."""
    beside = [file.name for pattern in TOKENIZER_FILES for file in source.glob(pattern)]
    graphs = [path.name for path in out.glob("*.onnx*")] if out.is_dir() else []
    return [MODEL_FILE, "config.json", "genai_config.json", "export.json", *beside, *graphs]


def _sweep_stages(out: Path) -> None:
    """Remove what exports of earlier versions left where they were killed: they built in a folder of this name."""
    for left in out.glob(".export.*") if out.is_dir() else ():
        if left.is_dir() and all(_is_ours(path.name) for path in left.iterdir()):
            remove_tree(left)


def _is_ours(name: str) -> bool:
    known = ("config.json", "genai_config.json", "export.json", "generation_config.json", "*.onnx", "*.onnx.data")
    return any(fnmatch(name, pattern) for pattern in (*known, *TOKENIZER_FILES))


class _Clock:
    """Seconds by stage, and one advance of the progress per stage."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._tick = (progress or silent)("export onnx", len(_STAGES))

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 3)
        self._tick()
