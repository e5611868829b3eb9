"""One decode step of one attention with Llama-3.2-1B's shapes, dense beside crystallized and latent, and the bytes they cache.

    python tests/benchmarks/attention_decode.py                                  # one CPU thread, float32
    python tests/benchmarks/attention_decode.py --device cuda --dtype bfloat16

2,048 hidden, 32 heads, 8 key/value heads of 64; random weights, a random cache of 4,096 and 16,384 positions. A step is the
whole attention: projections, cache update, attention, output. All variants take turns in one run; a ratio above 1 is faster
than dense SDPA, in brackets its 95 % interval. "static" writes one row of an allocated cache, "dynamic" (the default of
generate) copies the cache at every step. Bytes per token are those of the live cache's tensors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, StaticCache
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from compress.clock import interleave, paired_speedup, summary_ms, timed
from compress.evaluating.cost import cache_bytes
from compress.nn.attention import CrystallizedAttention
from compress.nn.latent import LatentAttention

CONFIG = LlamaConfig(
    hidden_size=2048,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    num_hidden_layers=1,
    attn_implementation="sdpa",
)
LATENT = 2 * CONFIG.num_key_value_heads * CONFIG.head_dim // 2  # half the numbers of keys and values


def variants(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """The attentions, with seeded random weights."""

    def dense() -> LlamaAttention:
        torch.manual_seed(0)
        return LlamaAttention(CONFIG, 0)

    shape = {"d_model": 2048, "rank": LATENT, "head_dim": 64, "kv_heads": 8, "scale": 1.0}
    apart = {**shape, "key_rank": LATENT // 2, "value_rank": LATENT // 2}
    joint = {**shape, "key_rank": LATENT, "value_rank": LATENT}
    made: dict[str, Any] = {
        "dense SDPA": dense(),
        "crystallized, r = 8": CrystallizedAttention(dense(), 8, 64),
        "crystallized, top value alone": CrystallizedAttention(dense(), 0, 64),
        "latent 50 %, joint": LatentAttention(dense(), **joint),
        "latent 50 %, separate": LatentAttention(dense(), **apart),
    }
    for module in made.values():
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        module.to(device=device, dtype=dtype).eval()
    return made


def step_of(module: Any, positions: int, kind: str, device: str, dtype: torch.dtype) -> tuple[Callable[[], float], float]:
    """(one decode step, timed in milliseconds; cache bytes per token)."""
    x = torch.randn(1, 1, 2048, device=device, dtype=dtype)
    ids = torch.full((1, 1), positions, device=device)
    rotary = LlamaRotaryEmbedding(CONFIG).to(device)(x, ids)
    cache: Any = StaticCache(CONFIG, max_cache_len=positions + 1) if kind == "static" else DynamicCache()
    module(x, position_embeddings=rotary, position_ids=ids * 0, past_key_values=cache)  # makes tensors of the right shapes
    layer = cache.layers[0]
    if kind == "static":
        layer.keys.normal_()
        layer.values.normal_()
    else:
        layer.keys, layer.values = (
            t.new_empty(*t.shape[:2], positions, t.shape[3]).normal_() for t in (layer.keys, layer.values)
        )
    bytes_per_token = cache_bytes([layer.keys, layer.values]) / layer.keys.shape[2]

    @torch.no_grad()
    def step() -> float:
        if kind == "static":
            layer.cumulative_length.fill_(positions)
        milliseconds, _ = timed(
            device, lambda: module(x, position_embeddings=rotary, position_ids=ids, past_key_values=cache, attention_mask=None)
        )
        if kind == "dynamic":
            cache.crop(-1)
        return milliseconds

    return step, bytes_per_token


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--positions", type=int, nargs="+", default=[4096, 16384])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} thread"
    print(f"{where}, {options.dtype}, torch {torch.__version__}, {options.rounds} rounds\n")
    print("| positions | cache | attention | cache bytes per token | median ms | dense / own time | |")
    print("|---|---|---|---|---|---|---|")
    for positions in options.positions:
        for kind in ("static", "dynamic"):
            steps, sizes = {}, {}
            for name, module in variants(options.device, dtype).items():
                torch.manual_seed(1)
                steps[name], sizes[name] = step_of(module, positions, kind, options.device, dtype)
            interleave(steps, 3)
            times = interleave(steps, options.rounds)
            for name, samples in times.items():
                speed = paired_speedup(samples, times["dense SDPA"])
                ratio = (
                    "" if name == "dense SDPA" else f"{speed.ratio:.2f} [{speed.low:.2f}, {speed.high:.2f}] | {speed.verdict}"
                )
                cells = [f"{positions:,}", kind, name, f"{sizes[name]:,.0f}", f"{summary_ms(samples)['p50_ms']:.3f}"]
                print(f"| {' | '.join(cells)} | {ratio or '1 | '} |", flush=True)


if __name__ == "__main__":
    main()
