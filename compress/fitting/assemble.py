"""A model and its replacements put together: as the tensors of a checkpoint, or as a model in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.methods.base import Replacement
from compress.plan import Plan
from compress.stream.model import StreamedModel

_TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


def plan_of(replacements: Sequence[Replacement]) -> Plan:
    """The Plan of all replacements, in their order."""
    return Plan(modules=tuple(spec for r in replacements for spec in r.specs))


def tensors_of(model: StreamedModel, replacements: Sequence[Replacement]) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's tensors by stored name, sorted, one at a time: originals as they are, then ours."""
    ours = {model.stored_name(name): (r, name) for r in replacements for name in r.tensors}
    dtype = storage_dtype(model)
    # Sorted, so that the shards are the same bytes on every run.
    for name in sorted({*kept_names(model, replacements), *ours}):
        if name in ours:
            replacement, full = ours[name]
            yield name, _stored(full, replacement.tensors[full], dtype)
        else:
            yield name, model.shards.tensor(name)


def stored_tensors(model: StreamedModel, replacement: Replacement) -> dict[str, Tensor]:
    """A replacement's tensors in the dtype they are stored in, by full name."""
    dtype = storage_dtype(model)
    return {name: _stored(name, tensor, dtype) for name, tensor in replacement.tensors.items()}


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Raises ValueError for what is not finite in its dtype: nothing of the kind is ever written."""
    # float64 is "as the model is stored"; any other dtype, float32 or an index's, was chosen and stays.
    stored = tensor.to(dtype) if tensor.dtype == torch.float64 else tensor
    if stored.is_floating_point() and not bool(torch.isfinite(stored).all()):
        largest = float(tensor[torch.isfinite(tensor)].abs().max()) if bool(torch.isfinite(tensor).any()) else math.nan
        raise ValueError(
            f"{name}: not finite as {str(stored.dtype).removeprefix('torch.')} (largest finite entry {largest:.3g}); "
            "store the original in bfloat16 or float32, or choose another rank or method for it"
        )
    return stored


def kept_names(model: StreamedModel, replacements: Sequence[Replacement]) -> list[str]:
    """Stored names of the original tensors that no replacement drops."""
    # A module's tensors begin with its name and a dot: without the dot layers.1 would take layers.10 with it.
    removed = tuple(f"{module}." for r in replacements for module in r.removed)
    return [name for name in model.shards if not model.full_name(name).startswith(removed)]


def storage_dtype(model: StreamedModel) -> torch.dtype:
    """The dtype most of the original's numbers are stored in."""
    counts: dict[str, int] = {}
    for name, shape in model.shards.shapes.items():
        counts[model.shards.dtypes[name]] = counts.get(model.shards.dtypes[name], 0) + torch.Size(shape).numel()
    return _TORCH_DTYPES.get(max(counts, key=lambda k: counts[k]), torch.float32)


def load_variant(model: StreamedModel, replacements: Sequence[Replacement], dtype: torch.dtype = torch.float32) -> Any:
    """The whole model in memory with the replacements applied, exactly as the checkpoint stores them."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    from compress.loading.modules import apply_plan

    # Buffers are computed, not stored (rotary frequencies): these must be real.
    with init_empty_weights(include_buffers=False):
        whole = AutoModelForCausalLM.from_config(model.config, dtype=dtype).eval()
        apply_plan(whole, plan_of(replacements))
    state = {}
    wanted = whole.state_dict()
    for stored, tensor in tensors_of(model, replacements):
        name = model.full_name(stored)
        # A tensor that is in its own dtype on purpose, float32 in a bfloat16 model, keeps it.
        keep = name in wanted and wanted[name].dtype == tensor.dtype
        state[name] = tensor if keep or not tensor.is_floating_point() else tensor.to(dtype)
    # Not strict: tied weights are stored once. What is missing in earnest is found below, as still empty.
    whole.load_state_dict(state, strict=False, assign=True)
    whole.tie_weights()
    empty = [name for name, value in whole.state_dict().items() if value.is_meta]
    if empty:
        raise ValueError(f"{model.shards.name}: no tensor for {empty[0]}")
    return whole
