"""Attention replacements. Torch only, but for transformers' table of attention functions, which is looked up when one is built.

Crystallized attention splits a head's output exactly: o = V_top + ε, top = argmax_j p_j, ε = Σ_j p_j V_j − V_top, and keeps
only part of ε. In a basis in which the kept part is the first `rank` dimensions of the values (folded into the value and
output projections) this is: the first dimensions are averaged as ever, the others are read from the top position alone.
"""
# Tensor.unflatten and transformers' table of attention functions have no types; the classes are copied, so the note is here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

# Scores of one block are batch · heads · 128 · 512 numbers, whatever the length.
QUERY_BLOCK = 128
KEY_BLOCK = 512


class CrystallizedAttention(nn.Module):
    """The attention it replaces, with the same linears, norms, positions and cache, and another attention function.

    rank = 0 reads the top value alone, rank = head_dim is the original. Parameters keep the names they had.
    """

    def __init__(self, original: nn.Module, rank: int, head_dim: int) -> None:
        super().__init__()
        if not 0 <= rank <= head_dim:
            raise ValueError(f"crystallized_attention: rank {rank} given; allowed: 0 (top value) to head_dim = {head_dim}")
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register("crystallized", crystallized)
        attention: Any = original
        # A config of its own: the choice of the attention function is read there, and belongs to this layer alone.
        attention.config = copy.copy(attention.config)
        attention.config._attn_implementation = "crystallized"
        attention.crystallized_rank = rank
        self.rank, self.head_dim, self.config = rank, head_dim, attention.config
        self.layer_idx: int = attention.layer_idx
        # The very tables of the original, so that a linear replaced here is replaced there; in a tuple it is no submodule, and
        # its parameters are listed once, under the names they had.
        self._modules, self._parameters, self._buffers = attention._modules, attention._parameters, attention._buffers
        self._attention = (attention,)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the original's: hidden states (B, T, d_model) → the same shape, and no weights."""
        return self._attention[0](*args, **kwargs)

    def multiply_adds(self, context: int) -> int:
        """Of one token that sees `context` positions: the linears, the scores, `rank` numbers of every value."""
        heads = self.config.num_attention_heads
        kinds = getattr(self.config, "layer_types", None)
        slides = kinds is None or kinds[self.layer_idx] == "sliding_attention"
        window = (slides and getattr(self.config, "sliding_window", None)) or context
        linears = sum(p.numel() for p in self.parameters() if p.ndim == 2)
        return linears + heads * (self.head_dim + self.rank) * min(context, window)


def crystallized(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, H, T, C), key and value (B, G, S, C) → (B, T, H, C). No dropout."""
    rank: int = module.crystallized_rank
    # What flex attention hands over is a mask of its own kind, with no dimensions.
    if attention_mask is not None and getattr(attention_mask, "ndim", None) != 4:
        raise ValueError("crystallized attention needs a mask of four dimensions: load with attn_implementation='sdpa'")
    if more.get("output_attentions"):
        raise ValueError("crystallized attention has no weights to give: leave output_attentions out")
    out = crystallize(query, key, value, attention_mask, rank, scaling, more.get("softcap"))
    return out.transpose(1, 2).contiguous(), None


def crystallize(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rank: int,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """Averages of the first `rank` dimensions of the values beside the other dimensions of the top position's value.

    query (B, H, T, C), key and value (B, G, S, C), mask as in `attend` → (B, H, T, C).
    """
    weighted, top = attend(query, key, value[..., :rank], mask, scale, cap)
    return torch.cat([weighted, gather_rows(value[..., rank:], top)], dim=-1).flatten(1, 2)


def gather_rows(value: Tensor, top: Tensor) -> Tensor:
    """value (B, G, S, D), top (B, G, H/G, T) → the rows at these positions, (B, G, H/G, T, D)."""
    index = top.flatten(2)[..., None].expand(-1, -1, -1, value.shape[-1])
    return value.gather(2, index).unflatten(2, top.shape[2:])


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = None, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax averages of the values and the positions of the largest weights, in blocks.

    query (B, H, T, C), key (B, G, S, C), value (B, G, S, D), mask (B or 1, H or 1, T, S): boolean (True: visible) or added to
    the scores; None is causal from the first position, or everything for one query. Returns (B, G, H/G, T, D) and positions
    (B, G, H/G, T); of equal weights the first position's.
    """
    new, groups = query.shape[2], key.shape[1]
    if mask is None and new > 1:  # a longer cache is one that is not filled yet
        key, value = key[:, :, :new], value[:, :, :new]
    q = query.unflatten(1, (groups, query.shape[1] // groups)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if torch.compiler.is_exporting() or new == 1:
        scores = masked_scores(q, key, mask, cap)
        weights = scores.softmax(dim=-1).to(value.dtype)
        return _product(weights, value), scores.argmax(dim=-1)
    blocks = [_running(q, key, value, mask, cap, start) for start in range(0, new, QUERY_BLOCK)]
    return torch.cat([weighted for weighted, _ in blocks], dim=3), torch.cat([top for _, top in blocks], dim=3)


def _running(
    q: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, cap: float | None, start: int
) -> tuple[Tensor, Tensor]:
    """One block of queries over blocks of keys: running maximum, its position, and sums, as in flash attention."""
    new, total = q.shape[3], key.shape[2]
    q = q[:, :, :, start : start + QUERY_BLOCK]
    visible = total - new + min(start + QUERY_BLOCK, new)  # no query of this block sees a later key
    best = torch.full(q.shape[:-1], float("-inf"), dtype=torch.float32, device=q.device)
    top = torch.zeros(q.shape[:-1], dtype=torch.int64, device=q.device)
    total_weight = torch.zeros_like(best)
    weighted = torch.zeros(*q.shape[:-1], value.shape[-1], dtype=torch.float32, device=q.device)
    for first in range(0, visible, KEY_BLOCK):
        keys, values = (t[:, :, first : min(first + KEY_BLOCK, visible)] for t in (key, value))
        part = None if mask is None else mask[:, :, start : start + q.shape[3], first : first + keys.shape[2]]
        scores = masked_scores(q, keys, part, cap, start, first)
        highest, where = scores.max(dim=-1)
        top = torch.where(highest > best, where + first, top)  # strictly: of equal ones the earlier stays
        larger = torch.maximum(best, highest)
        shrink = (best - larger).exp()
        weights = (scores - larger[..., None]).exp()
        total_weight = total_weight * shrink + weights.sum(dim=-1)
        weighted = weighted * shrink[..., None] + _product(weights.to(value.dtype), values)
        best = larger
    return (weighted / total_weight[..., None]).to(value.dtype), top


def masked_scores(
    q: Tensor, key: Tensor, mask: Tensor | None, cap: float | None = None, start: int = 0, first: int = 0
) -> Tensor:
    """Masked scores of q (B, G, H/G, t, C) with key (B, G, s, C), float32.

    Without a mask they are causal; the block begins at query `start` and key `first`.
    """
    scores = _product(q, key.transpose(2, 3)).float()
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    lowest = torch.finfo(torch.float32).min  # not −inf: a row that sees nothing (padding) stays finite
    if mask is None:
        if q.shape[3] == 1 and start == 0:
            return scores
        rows = torch.arange(start, start + q.shape[3], device=q.device)[:, None]
        columns = torch.arange(first, first + key.shape[2], device=q.device)
        return scores.masked_fill(columns > rows, lowest)
    mask = mask[:, :, None] if mask.shape[1] == 1 else mask.unflatten(1, (key.shape[1], -1))
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, lowest)
    return (scores + mask.float()).clamp_min(lowest)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a (B, G, H/G, t, n) @ b (B, G, n, m) without repeating b for the heads that share it."""
    if torch.compiler.is_exporting():  # graphs broadcast for themselves, and the merged dimension would bind their sizes
        return a @ b[:, :, None]
    return (a.flatten(2, 3) @ b).unflatten(2, a.shape[2:4])
