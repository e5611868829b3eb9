"""Attention whose cache holds one latent per token. Torch only, but for transformers' table of attention functions."""
# Tensor.unflatten and transformers' table of attention functions have no types; the classes are copied, so the note is here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.nn.attention import masked_scores


class HeadRows(nn.Module):
    """Rows of a projection, head by head: weight (heads, head_dim, rank), bias (heads, head_dim).

    Three dimensions, so that a loader that does not know this class stops on the shape whatever the rank.
    """

    def __init__(self, heads: int, head_dim: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, head_dim, rank))
        self.bias = nn.Parameter(torch.empty(heads, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, S, rank) → (B, S, heads, head_dim)"""
        return F.linear(x, self.weight.flatten(0, 1), self.bias.flatten()).unflatten(-1, self.bias.shape)


class LatentAttention(nn.Module):
    """c_t = basis @ x_t is cached instead of k_t and v_t. Keys are rebuilt on read and turned at their own positions; values
    are not: for a new token the weights average the latents, and the value rows are applied to the average.

    basis (rank, d_model); k_proj.weight (n_kv_heads, head_dim, key_rank) reads the first key_rank latents, v_proj.weight the
    last value_rank ones: all of them where both equal rank, their own where they add up to it. frequencies (head_dim / 2,) of
    the rotary positions, float32. Queries, norms and the output projection are the original's.
    """

    def __init__(
        self,
        original: nn.Module,
        d_model: int,
        rank: int,
        key_rank: int,
        value_rank: int,
        head_dim: int,
        kv_heads: int,
        scale: float,
    ) -> None:
        super().__init__()
        attention: Any = original
        self.config, self.layer_idx, self.scaling = attention.config, attention.layer_idx, attention.scaling
        self.rank, self.key_rank, self.value_rank = rank, key_rank, value_rank
        self.head_dim, self.kv_heads, self.rotary_scale = head_dim, kv_heads, scale
        # What transformers' attention functions read of the module they are called with.
        self.num_key_value_groups, self.is_causal = attention.num_key_value_groups, True
        for name, child in original.named_children():
            if name not in ("k_proj", "v_proj"):
                self.add_module(name, child)
        self.basis = nn.Parameter(torch.empty(rank, d_model))
        self.k_proj = HeadRows(kv_heads, head_dim, key_rank)
        self.v_proj = HeadRows(kv_heads, head_dim, value_rank)
        self.register_buffer("frequencies", torch.zeros(head_dim // 2, dtype=torch.float32))

    frequencies: Tensor
    q_proj: nn.Module
    o_proj: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        position_ids: Tensor | None = None,
        **more: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states (B, T, d_model), mask (B or 1, 1, T, S) → (B, T, d_model); the cache gets (B, 1, T, rank) as keys."""
        x = hidden_states
        new = x.shape[1]
        latents = F.linear(x, self.basis)[:, None]  # (B, 1, T, rank)
        filled: Any = new
        if past_key_values is not None:
            filled = past_key_values.get_seq_length(self.layer_idx) + new  # before the update: static caches count in place
            latents, _ = past_key_values.update(latents, latents[..., :0], self.layer_idx)
        latents = latents[:, 0]  # (B, S, rank)
        counted = torch.arange(new, device=x.device)[None] + (filled - new)
        positions: Tensor = counted if position_ids is None else position_ids
        query = self._normed("q_norm", self.q_proj(x).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
        query = self._turned(query, positions)
        key = self._normed("k_norm", self.k_proj(latents[..., : self.key_rank])).transpose(1, 2)  # (B, G, S, C)
        key = self._turned(key, self._key_positions(positions, filled, latents.shape[1]))
        latents = latents[..., self.rank - self.value_rank :]
        if new == 1 or torch.compiler.is_exporting():
            y = self._absorbed(query, key, latents, attention_mask)
        else:
            y = self._rebuilt(query, key, latents, attention_mask, **more)
        return self.o_proj(y.flatten(2)), None

    def _absorbed(self, query: Tensor, key: Tensor, latents: Tensor, mask: Tensor | None) -> Tensor:
        """Averages of the latents, then the value rows: S · rank numbers are read, and no value of an earlier token is made."""
        batch, heads, new, _ = query.shape
        q = query.unflatten(1, (self.kv_heads, heads // self.kv_heads)) * self.scaling
        weights = masked_scores(q, key, mask).softmax(dim=-1).to(latents.dtype)  # (B, G, H/G, T, S)
        mixed = (weights.flatten(1, 3) @ latents).view(batch, self.kv_heads, -1, self.value_rank)  # (B, G, H/G · T, rank)
        y = mixed @ self.v_proj.weight.transpose(1, 2) + self.v_proj.bias[:, None]  # weights add up to 1
        return y.view(batch, heads, new, self.head_dim).transpose(1, 2)

    def _rebuilt(self, query: Tensor, key: Tensor, latents: Tensor, mask: Tensor | None, **more: Any) -> Tensor:
        """Many new tokens share the cost of the values: rebuild them once and run the model's own attention function."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        value = self.v_proj(latents).transpose(1, 2)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, sdpa_attention_forward)
        return function(self, query, key, value, mask, dropout=0.0, scaling=self.scaling, **more)[0]

    def _key_positions(self, position_ids: Tensor, filled: Any, total: int) -> Tensor:
        """(B or 1, S): counted back from the newest token's, which is right under left padding too. A full sliding cache holds
        the last `total` tokens, a static one the first `filled`.
        """
        if torch.compiler.is_exporting():
            last: Any = total - 1
        else:
            last = (filled.clamp(max=total) if isinstance(filled, Tensor) else min(filled, total)) - 1
        positions = position_ids[:, -1:] - last + torch.arange(total, device=position_ids.device)
        return positions.clamp_min(0)  # padding, which no query sees

    def _turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotary positions: x (B, heads, T, C), positions (B or 1, T)."""
        angles = positions[:, None, :, None].float() * self.frequencies  # (B, 1, T, C/2)
        cos, sin = ((f(angles) * self.rotary_scale).to(x.dtype) for f in (torch.cos, torch.sin))
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def _normed(self, name: str, x: Tensor) -> Tensor:
        """x (…, C) through the norm of each head, where the model has one."""
        return getattr(self, name)(x) if hasattr(self, name) else x

    def multiply_adds(self, context: int) -> int:
        """Of one new token that sees `context` positions; rebuilding the keys is most of it."""
        heads = self.config.num_attention_heads
        kinds = getattr(self.config, "layer_types", None)
        slides = kinds is None or kinds[self.layer_idx] == "sliding_attention"
        seen = min(context, (slides and getattr(self.config, "sliding_window", None)) or context)
        per_position = self.k_proj.weight.numel() + heads * (self.head_dim + self.value_rank)
        once = sum(p.numel() for name, p in self.named_parameters() if p.ndim == 2 and not name.endswith("bias"))
        return once + heads * self.head_dim * self.value_rank + seen * per_position
