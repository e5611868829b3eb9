"""The residuals of a running attention: what the average over all values adds to the value of the top position."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from compress.nn.attention import attend, gather_rows


class Residuals:
    """While it is there, an attention hands ε = Σ_j p_j V_j − V_top of every query to `take`, and computes what it always does:
    its own function gives its output, so that the layers above read the same bits whether it is observed or not.

    `take` gets rows (n, n_kv_heads, head_dim): the query heads that share a value head are rows of that head. Raises
    ValueError for an attention that does not look its function up in transformers' table.
    """

    def __init__(self, attention: nn.Module, take: Callable[[Tensor], None]) -> None:
        if not hasattr(attention, "config"):
            raise ValueError(f"{type(attention).__name__} has no config, so its attention function cannot be observed")
        self._attention: Any = attention
        self._config, self._take = self._attention.config, take
        name = f"residuals of {id(self)}"  # of this object alone: several may observe at once
        self._name = name
        ALL_ATTENTION_FUNCTIONS.register(name, self._observe)
        self._attention.config = copy.copy(self._config)
        self._attention.config._attn_implementation = name

    def remove(self) -> None:
        """Give the attention its own function back."""
        self._attention.config = self._config
        del ALL_ATTENTION_FUNCTIONS._global_mapping[self._name]

    def _observe(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        # As the attention itself looks it up: in the table, or, where it computes eagerly, in the file of its class.
        eager = sys.modules[type(self._attention).__module__].eager_attention_forward
        own = ALL_ATTENTION_FUNCTIONS.get_interface(self._config._attn_implementation, eager)
        with torch.no_grad():
            weighted, top = attend(query, key, value, attention_mask, more.get("scaling"), more.get("softcap"))
            residual = weighted - gather_rows(value, top)  # (B, G, H/G, T, C)
            self._take(residual.movedim(1, -2).flatten(0, -3))
        return own(module, query, key, value, attention_mask, **more)
