"""Writes text/calibration.txt and text/evaluation.txt: documents drawn from novella itself, the same bytes on every machine.

    python -m compress.novella.sample [FOLDER]

The forward pass is numpy in float64, because transformers computes norms and rotations in float32 for any dtype, and float32
rounding differs between processors: over 240,000 draws that would change some of them. In float64 a draw would have to fall
within about 1e-13 of a boundary. It is also an independent statement of the model, which the tests hold against transformers.

Every document starts at <|endoftext|>, has its own random stream, and is the plain model: temperature 1, no top-k, no top-p. It
ends where the model ends it, or at 256 tokens, the window novella was trained on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.novella import FOLDER

LENGTH = 256  # tokens per document, <|endoftext|> included
DOCUMENTS = 480  # about 400 KB
BATCH = 96
END = 0  # <|endoftext|>, both the first token and the one that ends a document
SEEDS = {"calibration": 1, "evaluation": 2}
SEPARATOR = "\n\n"

Array = NDArray[np.float64]


def _norm(x: Array, weight: Array, epsilon: float) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def _rotate(x: Array, position: int, theta: float) -> Array:
    """Rotary embedding of x (..., head_dim) at one position."""
    half = x.shape[-1] // 2
    angle = position * theta ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Novella:
    """The model in float64, one token at a time, with a cache of keys and values for `batch` documents."""

    def __init__(self, batch: int, length: int = LENGTH, folder: Path = FOLDER) -> None:
        from safetensors.torch import load_file  # numpy has no bfloat16; every value is exact in float64

        self.config = json.loads((folder / "config.json").read_text())
        self.weights: dict[str, Array] = {k: v.double().numpy() for k, v in load_file(folder / "model.safetensors").items()}
        self.heads, self.kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        self.head_dim = self.config["hidden_size"] // self.heads
        shape = (self.config["num_hidden_layers"], batch, self.kv_heads, length, self.head_dim)
        self.keys, self.values = np.zeros(shape), np.zeros(shape)
        self.position = 0

    def step(self, tokens: NDArray[np.int64]) -> Array:
        """Logits (batch, vocabulary) after `tokens` (batch,), one per document."""
        epsilon = self.config["rms_norm_eps"]
        x = self.weights["model.embed_tokens.weight"][tokens]
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            x = x + self._attention(_norm(x, self.weights[prefix + "input_layernorm.weight"], epsilon), layer)
            h = _norm(x, self.weights[prefix + "post_attention_layernorm.weight"], epsilon)
            gate, up = self._linear(h, prefix + "mlp.gate_proj"), self._linear(h, prefix + "mlp.up_proj")
            x = x + self._linear(gate / (1 + np.exp(-gate)) * up, prefix + "mlp.down_proj")
        self.position += 1
        return _norm(x, self.weights["model.norm.weight"], epsilon) @ self.weights["model.embed_tokens.weight"].T

    def _linear(self, x: Array, name: str) -> Array:
        return x @ self.weights[name + ".weight"].T + self.weights.get(name + ".bias", 0.0)

    def _attention(self, x: Array, layer: int) -> Array:
        """Grouped-query attention of the newest token over the cache; x (batch, d_model)."""
        batch, now, theta = len(x), self.position, self.config["rope_parameters"]["rope_theta"]
        name = f"model.layers.{layer}.self_attn."
        q = self._linear(x, name + "q_proj").reshape(
            batch, self.kv_heads, -1, self.head_dim
        )  # (batch, kv head, group, head_dim)
        k = self._linear(x, name + "k_proj").reshape(batch, self.kv_heads, self.head_dim)
        self.keys[layer, :, :, now] = _rotate(k, now, theta)
        self.values[layer, :, :, now] = self._linear(x, name + "v_proj").reshape(batch, self.kv_heads, self.head_dim)
        keys, values = self.keys[layer, :, :, : now + 1], self.values[layer, :, :, : now + 1]
        scores = _rotate(q, now, theta) @ keys.swapaxes(-1, -2) / np.sqrt(self.head_dim)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out = weights / weights.sum(axis=-1, keepdims=True) @ values
        return self._linear(out.reshape(batch, -1), name + "o_proj")


def documents(seed: int, numbers: Sequence[int], length: int = LENGTH) -> tuple[NDArray[np.int64], Array]:
    """Documents `numbers` of stream `seed`: tokens (n, length), and the nll (n, length - 1) in nats the model gave them.

    A document's tokens depend on (seed, number) only. What follows a second <|endoftext|> is not part of it: see `cut`.
    """
    model = Novella(len(numbers), length)
    uniform = np.stack([np.random.default_rng([seed, number]).random(length - 1) for number in numbers])
    tokens = np.full((len(numbers), length), END, dtype=np.int64)
    nll = np.zeros((len(numbers), length - 1))
    for i in range(length - 1):
        logits = model.step(tokens[:, i])
        cumulative = np.cumsum(np.exp(logits - logits.max(axis=-1, keepdims=True)), axis=-1)
        target = uniform[:, i, None] * cumulative[:, -1:]  # below the last boundary: random() < 1
        tokens[:, i + 1] = (cumulative <= target).sum(axis=-1)
        probability = np.diff(cumulative, axis=-1, prepend=0.0) / cumulative[:, -1:]
        nll[:, i] = -np.log(np.take_along_axis(probability, tokens[:, i + 1, None], axis=-1)[:, 0])
    return tokens, nll


def cut(tokens: Sequence[int]) -> list[int]:
    """A document's own tokens: without the leading <|endoftext|>, up to the one the model closed it with."""
    body = [int(token) for token in tokens[1:]]
    return body[: body.index(END)] if END in body else body


def text(role: str, count: int = DOCUMENTS) -> tuple[str, Array]:
    """The first `count` documents of a role, and the nll in nats of every token drawn for them, in order."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    parts: list[str] = []
    drawn: list[Array] = []
    for start in range(0, count, BATCH):
        tokens, nll = documents(SEEDS[role], range(start, min(start + BATCH, count)))
        for row, values in zip(tokens, nll, strict=True):
            body = cut(row.tolist())
            parts.append(tokenizer.decode(body))
            drawn.append(values[: len(body) + 1])  # the closing <|endoftext|> was drawn too
    return SEPARATOR.join(parts) + "\n", np.concatenate(drawn)


def main() -> None:
    """Write both texts and print what the model card records of them."""
    parser = argparse.ArgumentParser(description="Regenerate the texts packaged with novella.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER / "text", help="where to write (default: the package)")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for role in SEEDS:
        content, nll = text(role)
        data = content.encode()
        (folder / f"{role}.txt").write_bytes(data)
        print(f"{role}.txt {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")
        print(f"  {len(nll)} tokens drawn, exp(mean nll) {np.exp(nll.mean()):.2f}")


if __name__ == "__main__":
    main()
