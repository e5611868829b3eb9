"""A model as one ONNX graph: ids, mask, positions and the KV cache in, float32 logits and the grown cache out."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from compress import kinds
from compress.architecture import FIXED_ROTARY
from compress.plan import Plan

OPSETS = (18, 20, 21, 22, 23, 24, 25)  # 17 and 19 come out as another opset, 26 as an invalid graph
CacheShape = tuple[tuple[int, int], tuple[int, int]]  # of one layer: (heads, head_dim) of its keys and of its values

# Of the traced example. No size is 1 or equals another: the exporter would take it for a constant, or two for one dimension.
_BATCH, _SEQUENCE, _PAST = 2, 3, 4


class CachedModel(nn.Module):
    """The signature of the graph. A cache built inside needs no registration with torch.export."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: list[tuple[Tensor, Tensor]], position_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """ids (B, T), mask (B, P + T), past (B, heads, P, head_dim) per layer → logits (B, T, vocabulary), keys and values"""
        positions = {} if position_ids is None else {"position_ids": position_ids}
        cache: Any = DynamicCache(ddp_cache_data=past)
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **positions)
        # In half precision a client would round its own softmax; numpy has no bfloat16 at all.
        return out.logits.float(), *(t for layer in out.past_key_values.layers for t in (layer.keys, layer.values))


def trace(model: Any, opset: int) -> ir.Model:
    """The graph of `model` (in eval mode, on the CPU), in the naming of optimum. Raises ValueError for an unusable opset."""
    check_opset(opset)
    layers = cache_shapes(model)
    dtype = next(model.parameters()).dtype
    example: dict[str, Any] = {
        "input_ids": torch.zeros(_BATCH, _SEQUENCE, dtype=torch.int64),
        "attention_mask": torch.ones(_BATCH, _PAST + _SEQUENCE, dtype=torch.int64),
        "past": [tuple(torch.zeros(_BATCH, h, _PAST, d, dtype=dtype) for h, d in layer) for layer in layers],
    }
    past_axes = {0: "batch_size", 2: "past_sequence_length"}
    axes: dict[str, Any] = {
        "input_ids": {0: "batch_size", 1: "sequence_length"},
        "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
        "past": [(past_axes, past_axes) for _ in layers],
    }
    inputs = ["input_ids", "attention_mask", *cache_names("past_key_values", len(layers))]
    if takes_positions(model):
        example["position_ids"] = torch.arange(_PAST, _PAST + _SEQUENCE).expand(_BATCH, -1)
        axes["position_ids"] = axes["input_ids"]
        inputs.append("position_ids")
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            CachedModel(model).eval(),
            (),
            kwargs=example,
            input_names=inputs,
            output_names=["logits", *cache_names("present", len(layers))],
            dynamic_shapes=axes,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    written = program.model.opset_imports.get("")
    if written != opset:  # the converter gives up silently
        raise RuntimeError(f"the exporter wrote opset {written}, not {opset}; take another of {', '.join(map(str, OPSETS))}")
    return program.model


def prepare(model: nn.Module, plan: Plan) -> None:
    """Put what each kind wants traced into its module's place, with the tensors it has."""
    for spec in plan.modules:
        module = model.get_submodule(spec.module)
        if (traced := kinds.of(spec).for_onnx(module)) is not module:
            model.set_submodule(spec.module, traced)


def check_opset(opset: int) -> None:
    """Raises ValueError for an opset that the exporter cannot write."""
    if opset not in OPSETS:
        raise ValueError(f"opset {opset} cannot be written; there are {', '.join(map(str, OPSETS))} (23 has native attention)")


def cache_shapes(model: Any) -> list[CacheShape]:
    """What each layer caches, seen rather than read from the config, which does not know of replaced attention."""
    with torch.no_grad():
        ids = torch.zeros(1, 2, dtype=torch.int64)
        cache = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values
    # (B, heads, T, head_dim)
    return [tuple((t.shape[1], t.shape[3]) for t in (layer.keys, layer.values)) for layer in cache.layers]  # type: ignore[misc]


def cache_names(prefix: str, n_layers: int) -> list[str]:
    """`past_key_values.0.key`, `past_key_values.0.value`, … or the same for `present`."""
    return [f"{prefix}.{layer}.{part}" for layer in range(n_layers) for part in ("key", "value")]


def refuse_growing_positions(config: Any) -> None:
    """Raises NotImplementedError for rotary frequencies that change with the length: a graph holds those of its example."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type", "default") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if growing := sorted(kinds - set(FIXED_ROTARY)):
        raise NotImplementedError(f"ONNX has no rotary positions of type {growing[0]!r}; supported: {', '.join(FIXED_ROTARY)}")


def takes_positions(model: Any) -> bool:
    """Whether the model can be told the positions; the others count the mask themselves."""
    return "position_ids" in inspect.signature(model.forward).parameters


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what the exporter says of torchvision, and of axis names that two inputs share (as they must)."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
