"""Random two-layer models of every architecture row, random plans for them, and the checkpoints they make. Offline and fast.

Nothing is fitted: weights, factors and orders are seeded noise, enough to show that two programs compute the same thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from compress import kinds as kind_registry
from compress.architecture import ARCHITECTURES, architecture
from compress.kinds.contract import Finite, Kind
from compress.loading.modules import apply_plan
from compress.loading.quantizer import attach_plan
from compress.methods.base import Group
from compress.methods.mlp._shared import mlp_chain
from compress.plan import ModuleSpec, Plan

disable_progress_bar()

FAMILIES = tuple(ARCHITECTURES)
# Three ways to share a basis: k and v of a layer in both forms, v over all layers. A fused qkv is shared over the layers.
SHARED_KINDS = ("shared_linear", "shared_pivoted", "shared_across")
LINEAR_KINDS = ("low_rank_linear", "pivoted_linear", "dense_linear", *SHARED_KINDS)
ATTENTION_KINDS = ("crystallized_attention", "latent_attention")
MLP_KINDS = ("identity_mlp", "zero_mlp", "mean_mlp", "affine_mlp", "symbolic_mlp")

D_MODEL, D_FF, HEADS, KV_HEADS, LAYERS, VOCABULARY, POSITIONS = 32, 48, 4, 2, 2, 97, 128
RANK = 5  # of every random factorization here


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """Grouped queries, a head_dim that is not d_model / heads, biases and tied embeddings wherever the family has them."""
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    llama: dict[str, Any] = common | {
        "hidden_size": D_MODEL,
        "intermediate_size": D_FF,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
    }
    rows: dict[str, dict[str, Any]] = {
        "llama": llama
        | {"attention_bias": True, "mlp_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        "mistral": llama | {"sliding_window": 8, "head_dim": 12},
        "qwen2": llama | {"tie_word_embeddings": True},
        "qwen3": llama | {"head_dim": 16, "tie_word_embeddings": True},
        "gemma": llama | {"head_dim": 16},
        "gemma2": llama | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24},
        # A layer of each type, whose rotary positions differ.
        "gemma3_text": llama
        | {
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
            },
        },
        "olmo2": llama,
        "granite": llama
        | {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 2.0},
        "smollm3": llama | {"no_rope_layers": [1, 0]},
        "phi": llama | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        "phi3": llama | {"sliding_window": 8},
        "gpt_neox": common
        | {
            "hidden_size": D_MODEL,
            "intermediate_size": D_FF,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
        "gpt2": {key: value for key, value in common.items() if key != "max_position_embeddings"}
        | {"n_embd": D_MODEL, "n_inner": D_FF, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS},
        "opt": common
        | {
            "hidden_size": D_MODEL,
            "ffn_dim": D_FF,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "word_embed_proj_dim": D_MODEL,
        },
    }
    return AutoConfig.for_model(model_type, **(rows[model_type] | overrides))


def tiny_model(model_type: str, seed: int = 0, **overrides: Any) -> Any:
    """A random float32 model in eval mode whose logits differ clearly from token to token."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **overrides), dtype=torch.float32).eval()
    randomize(model, seed)
    return model


def randomize(module: nn.Module, seed: int) -> None:
    """Seeded normal parameters: matrices keep the scale of their input, norms stay near one, biases are far from zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        if parameter.ndim >= 2:
            noise *= 0.5 if "embed" in name or "wte" in name or "wpe" in name else 1.5 / max(parameter.shape[-1], 1) ** 0.5
        elif name.endswith("weight"):
            noise = 1 + 0.2 * noise
        else:
            noise *= 0.2
        with torch.no_grad():
            parameter.copy_(noise)
    for name, buffer in module.named_buffers():
        what = name.rpartition(".")[2]
        if what == "order":  # PivotedLinear: which row each output reads
            buffer.copy_(torch.randperm(buffer.numel(), generator=generator))
        elif what == "frequencies":  # LatentAttention: rotary positions
            buffer.copy_(500.0 ** -torch.linspace(0, 1, len(buffer) + 1)[:-1])
        elif what in ("low", "high"):  # SymbolicMLP: narrow enough that some latents are clamped
            buffer.fill_(-1.5 if what == "low" else 1.5)


def random_plan(model: Any, *kinds: str) -> Plan:
    """A plan of these kinds, in the model's own shapes.

    `low_rank_linear` takes every decoder linear, the shared kinds k and v (or qkv); another linear kind takes q (or qkv) and
    down of each layer; an attention kind takes every layer's attention; the n-th MLP kind takes the MLP of the n-th layer from
    the end. Raises ValueError for an unknown kind.
    """
    row = architecture(model.config.model_type)
    specs: dict[str, ModuleSpec] = {}
    layers = len(model.get_submodule(row.layers))
    from_end = layers - 1
    for kind in kinds:
        if kind in SHARED_KINDS:
            specs |= {spec.module: spec for spec in _shared_specs(model, kind)}
        elif kind in ATTENTION_KINDS:
            names = [f"{row.layer(layer)}.{row.attention}" for layer in range(layers)]
            specs |= {n: ModuleSpec(module=n, kind=kind, options=_attention_options(model, kind)) for n in names}
        elif kind in LINEAR_KINDS:
            roles = tuple(row.roles) if kind == "low_rank_linear" else tuple(r for r in ("q", "qkv", "down") if r in row.roles)
            for name, role in ((row.module(layer, role), role) for layer in range(layers) for role in roles):
                options = _linear_options(model.get_submodule(name), kind)
                if kind == "pivoted_linear" and role == "down":
                    options["reorder"] = False
                specs[name] = ModuleSpec(module=name, kind=kind, options=options)
        elif kind in MLP_KINDS:
            layer, from_end = row.layer(from_end % layers), from_end - 1
            modules = tuple(f"{layer}.{name}" for name in row.mlp)
            specs = {n: s for n, s in specs.items() if not any((n + ".").startswith(m + ".") for m in modules)}
            outer = ModuleSpec(module=modules[-1], kind=kind, options=_mlp_options(kind, row.mlp_outer))
            specs |= {s.module: s for s in mlp_chain(Group(kind, 0, from_end, modules), kind_registry.of(outer))}
        else:
            raise ValueError(f"unknown kind {kind!r}; there are {', '.join((*LINEAR_KINDS, *ATTENTION_KINDS, *MLP_KINDS))}")
    return Plan(modules=tuple(specs.values()))


def _linear_options(linear: nn.Module, kind: str) -> dict[str, Any]:
    weight: torch.Tensor = linear.weight  # type: ignore[assignment]
    out_features, in_features = weight.shape if isinstance(linear, nn.Linear) else reversed(weight.shape)
    shape = {"in_features": int(in_features), "out_features": int(out_features), "bias": True}
    if kind != "dense_linear":
        return shape | {"rank": RANK}
    return shape if linear.bias is not None else shape | {"bias": False, "extra_bias": True}


def _shared_specs(model: Any, kind: str) -> list[ModuleSpec]:
    """One basis per layer for k and v, or one for v (or qkv) of all layers; the first module of each is the owner."""
    row = architecture(model.config.model_type)
    layers = range(len(model.get_submodule(row.layers)))
    across = kind == "shared_across" or "v" not in row.roles
    roles = ("qkv",) if "v" not in row.roles else ("v",) if across else ("k", "v")
    sets = [[(layer, role) for layer in block for role in roles] for block in ([layers] if across else [[i] for i in layers])]
    specs = []
    for places in sets:
        owner, *_ = names = [row.module(*place) for place in places]
        for position, name in enumerate(names):
            options = _linear_options(model.get_submodule(name), kind)
            pivots = -(-(RANK - position) // len(names)) if kind == "shared_pivoted" else 0  # those among its own rows
            options |= {"stored_rows": options["out_features"] - pivots, "owner": None if name == owner else owner}
            specs.append(ModuleSpec(module=name, kind="shared_linear", options=options))
    return specs


def _attention_options(model: Any, kind: str) -> dict[str, Any]:
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if kind == "crystallized_attention":
        return {"rank": RANK, "head_dim": head_dim}
    kv_heads = config.num_key_value_heads
    own = {"d_model": D_MODEL, "rank": 2 * RANK, "key_rank": 2 * RANK, "value_rank": 2 * RANK}
    return own | {"head_dim": head_dim, "kv_heads": kv_heads, "scale": 1.0}


def _mlp_options(kind: str, outer: str) -> dict[str, Any]:
    if kind == "symbolic_mlp":
        return {"outer": outer, **_symbolic_options()}
    more = {
        "identity_mlp": {},
        "zero_mlp": {},
        "mean_mlp": {"d_model": D_MODEL},
        "affine_mlp": {"d_model": D_MODEL, "rank": RANK},
    }
    return {"outer": outer, **more[kind]}


def _symbolic_options() -> dict[str, Any]:
    """Three latents, two expressions with a part in common, one affine latent beside them."""
    shared = ["tanh", ["add", ["var", 0], ["mul", ["param", 0], ["var", 1]]]]
    return {
        "d_model": D_MODEL,
        "inputs": 3,
        "outputs": 2,
        "affine": 1,
        "constants": 2,
        "clamp": True,
        "expressions": [
            ["add", shared, ["pow", ["var", 2], ["int", 2]]],
            ["sub", ["mul", ["param", 1], shared], ["sin", ["mul", ["rational", 1, 3], ["var", 1]]]],
        ],
    }


def tiny_checkpoint(folder: Path, model_type: str, *kinds: str, seed: int = 0, **overrides: Any) -> Path:
    """Write a checkpoint with a random plan of these kinds (none: a plain HuggingFace folder) into `folder` and return it.

    `overrides` go to the model's config.
    """
    model = tiny_model(model_type, seed, **overrides)
    if kinds:
        return with_plan(folder, model, random_plan(model, *kinds), seed)
    model.save_pretrained(folder)
    return folder


def with_plan(folder: Path, model: Any, plan: Plan, seed: int = 0) -> Path:
    """Write `model` with this plan applied and seeded noise in the new parameters into `folder` and return it."""
    apply_plan(model, plan)
    for position, spec in enumerate(plan.modules):
        randomize(model.get_submodule(spec.module), seed + 1 + position)
    attach_plan(model, plan)
    model.save_pretrained(folder)
    return folder


class ScaledLinear(nn.Module):
    """The runtime of a kind that keeps the linear it replaces."""

    def __init__(self, original: nn.Module, factor: float) -> None:
        super().__init__()
        self.original, self.factor = original, factor
        self.weight = nn.Parameter(torch.empty(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.original(x) * self.factor


class Scaled(Kind):
    """A kind that keeps the linear it replaces; tests register it."""

    kind = "scaled_linear"
    replaces = "linear"
    runtime = ScaledLinear
    wraps = True

    factor: Finite


@contextmanager
def scaled_kind() -> Iterator[None]:
    """Inside, `scaled_linear` is a kind like any other."""
    kind_registry.registry.register("scaled_linear", Scaled)
    try:
        yield
    finally:
        kind_registry.registry.unregister("scaled_linear")
