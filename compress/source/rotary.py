"""Rotary positions as a checkpoint's config gives them: plain, by a fixed rule, or of a kind for each type of layer."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from compress.architecture import FIXED_ROTARY
from compress.source.pieces import refuse
from compress.validation import Finite, Positive, Size

TYPED = ConfigDict(strict=True, arbitrary_types_allowed=True)  # what becomes text of a program is checked as it is made

_ROPE_NUMBERS = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True, config=TYPED)
class Rope:
    """Rotary positions: `dims` of each head are turned by `theta`'s frequencies, or by stored ones where `note` says which.

    Where types of layers differ, `frequencies` has a row for each, and `rows` says which row a layer reads.
    """

    theta: Finite
    dims: Positive
    note: str = ""
    frequencies: Tensor | None = None
    scale: Finite = 1.0  # of cosine and sine (yarn)
    rows: tuple[Size, ...] = ()  # by layer; empty where all layers read the same


def rope_of(config: Any, head_dim: int) -> Rope:
    """Raises NotImplementedError for frequencies that depend on the length, or that layers scale by different factors."""
    parameters: dict[str, Any] = dict(config.rope_parameters)
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    if not kinds or kinds[0] not in parameters:
        return _one_rope(config, parameters, head_dim)
    each = [_one_rope(config, parameters[kind], head_dim, layer_type=kind) for kind in kinds]
    dims, scale = each[0].dims, each[0].scale
    refuse({(rope.dims, rope.scale) for rope in each} != {(dims, scale)}, "rotary scale that differs by layer", "one scale")
    # In one table, those that follow from theta written out.
    plain = (1 / rope.theta ** (torch.arange(0, dims, 2).float() / dims) for rope in each)
    tables = [p if rope.frequencies is None else rope.frequencies for p, rope in zip(plain, each, strict=True)]
    notes = (f"{kind} {rope.note or f'theta {rope.theta:g}'}" for kind, rope in zip(kinds, each, strict=True))
    rows = tuple(kinds.index(kind) for kind in config.layer_types)
    return Rope(each[0].theta, dims, ", ".join(notes), torch.stack(tables), scale, rows)


def _one_rope(config: Any, parameters: dict[str, Any], head_dim: int, **layer_type: str) -> Rope:
    """Of the whole model, or of the layers of one type."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = parameters.get("rope_type", "default")
    refuse(kind not in FIXED_ROTARY, f"rotary positions of type {kind!r}", ", ".join(FIXED_ROTARY))
    theta = float(parameters["rope_theta"])
    if kind == "default":
        # These families turn only a part of every head.
        fraction = parameters.get("partial_rotary_factor", 1.0) if config.model_type in ("phi", "phi3", "gpt_neox") else 1.0
        return Rope(theta, int(head_dim * fraction))
    # The function that the model itself calls, so that the file's frequencies cannot be others.
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), **layer_type)
    # Only names from this file go into generated code: a config's own keys may hold anything.
    numbers = ", ".join(f"{key} {float(parameters[key]):g}" for key in _ROPE_NUMBERS if parameters.get(key) is not None)
    # One frequency turns two dimensions.
    return Rope(theta, 2 * len(frequencies), f"{kind} ({numbers})", frequencies.float(), float(scale))
