"""Attention whose cache holds one latent per token, from which keys are rebuilt on read and values never are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from torch import nn

from compress.architecture import ARCHITECTURES
from compress.kinds._latent_source import latent_class
from compress.kinds.contract import Finite, Kind, Place, Positive, Work, asked
from compress.nn.latent import LatentAttention
from compress.source.family import Family
from compress.source.pieces import AttentionSource

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")  # whose attention the runtime computes
# Name in the file → name in the checkpoint, where the rows stand in the places of the projections they come from.
_TENSORS = {
    "basis": "basis",
    "key_rows": "k_proj.weight",
    "key_bias": "k_proj.bias",
    "value_rows": "v_proj.weight",
    "value_bias": "v_proj.bias",
    "frequencies": "frequencies",
}


class Latent(Kind):
    """`rank` numbers a token: keys read the first `key_rank`, values the last `value_rank`; `scale` of the rotary table."""

    kind = "latent_attention"
    replaces = "attention"
    runtime = LatentAttention
    wraps = True
    exempt: ClassVar[Mapping[str, str]] = {
        f"*:{row}": f"the runtime computes the attention of {', '.join(SUPPORTED)}; no method writes it elsewhere"
        for row in ARCHITECTURES
        if row not in SUPPORTED
    }
    told = "caches latents instead of keys and values"

    d_model: Positive
    rank: Positive
    key_rank: Positive
    value_rank: Positive
    head_dim: Positive
    kv_heads: Positive
    scale: Finite

    def work(self, module: nn.Module, place: Place) -> Work:
        """As its module counts, the attention's own products included."""
        return Work(asked(module, place.context), attends=True)

    def cache_numbers(self) -> int:
        """One latent."""
        return self.rank

    def torch_attention(self, family: Family, layer: int) -> AttentionSource:
        """A class of its own, in which keys and values have no linears."""
        sizes = [str(size) for size in (self.rank, self.key_rank, self.value_rank)]
        window = ["window=WINDOW"] * bool(family.windows[layer])
        return AttentionSource(
            f"LatentAttention({', '.join([*sizes, *window])})", _TENSORS, ("k", "v"), float32=("frequencies",)
        )

    @classmethod
    def torch_attention_class(cls, family: Family, placed: Mapping[int, Self], biases: Mapping[str, bool]) -> str:
        """One class for all these layers."""
        # The rotary table is the model's, so its scale is the same in every layer.
        return latent_class(family, biases, next(iter(placed.values())).scale)
