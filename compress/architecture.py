"""Where each architecture keeps its layers and roles: one row per `model_type`, the only place that knows module names.

Roles are the field's words: q k v o gate up down, and `qkv` / `gate_up` where the checkpoint fuses them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

# `rope_type`s whose frequencies are the same for every length of text; the others no fixed table can hold.
FIXED_ROTARY = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Architecture:
    """One row of the table; every module name is relative to a decoder layer unless it says otherwise."""

    model_type: str
    layers: str  # ModuleList of decoder layers, from the model's root
    attention: str
    roles: Mapping[str, str]  # role → Linear (or Conv1D)
    inputs: tuple[tuple[str, ...], ...]  # roles that read the same activation; one tap serves each tuple
    mlp: tuple[str, ...]  # the modules that together are the MLP: one, or the chain a layer runs inline (OPT)
    embeddings: tuple[str, ...]  # modules used before the first layer, from the root
    final: tuple[str, ...]  # modules used after the last layer, before the head, from the root
    head: str = "lm_head"
    stored_head: str = "lm_head"  # the head's name in the files, where transformers renames it while loading
    base_prefix: str = "model"  # transformers' base_model_prefix: AutoModel without a head drops it
    conv1d: bool = False  # weights stored (d_in, d_out)
    qkv_by_head: bool = False  # a fused qkv holds q, k, v of one head after the other; else all of q, then k, then v

    def layer(self, index: int) -> str:
        return f"{self.layers}.{index}"

    def module(self, index: int, role: str) -> str:
        """Full name of a role's linear in one layer."""
        return f"{self.layers}.{index}.{self.roles[role]}"

    def input_roles(self, role: str) -> tuple[str, ...]:
        """All roles of a layer that read the same activation as `role`."""
        return next(group for group in self.inputs if role in group)

    def locate(self, module: str) -> tuple[int, str] | None:
        """(layer index, role) of a full module name, or None where it is no role's linear."""
        if not module.startswith(self.layers + "."):
            return None
        index, _, rest = module[len(self.layers) + 1 :].partition(".")
        for role, name in self.roles.items():
            if name == rest and index.isdigit():
                return int(index), role
        return None

    @property
    def mlp_roles(self) -> tuple[str, ...]:
        return tuple(r for r in ("gate_up", "gate", "up", "down") if r in self.roles)

    @property
    def attention_roles(self) -> tuple[str, ...]:
        return tuple(role for role in self.roles if role not in self.mlp_roles)

    @property
    def mlp_outer(self) -> str:
        """Child of the MLP that a replacement must occupy, so that a loader that does not know us fails on its shape."""
        return "outer" if len(self.mlp) > 1 else self.roles["down"].rpartition(".")[2]


_LLAMA_ROLES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_LLAMA_INPUTS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))


def _llama_like(model_type: str) -> Architecture:
    return Architecture(
        model_type=model_type,
        layers="model.layers",
        attention="self_attn",
        roles=_LLAMA_ROLES,
        inputs=_LLAMA_INPUTS,
        mlp=("mlp",),
        embeddings=("model.embed_tokens", "model.rotary_emb"),
        final=("model.norm",),
    )


ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        *(
            _llama_like(name)
            for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "granite", "smollm3")
        ),
        Architecture(
            model_type="phi3",
            layers="model.layers",
            attention="self_attn",
            roles={
                "qkv": "self_attn.qkv_proj",
                "o": "self_attn.o_proj",
                "gate_up": "mlp.gate_up_proj",
                "down": "mlp.down_proj",
            },
            inputs=(("qkv",), ("o",), ("gate_up",), ("down",)),
            mlp=("mlp",),
            embeddings=("model.embed_tokens", "model.rotary_emb"),
            final=("model.norm",),
        ),
        Architecture(
            model_type="phi",
            layers="model.layers",
            attention="self_attn",
            roles={
                "q": "self_attn.q_proj",
                "k": "self_attn.k_proj",
                "v": "self_attn.v_proj",
                "o": "self_attn.dense",
                "up": "mlp.fc1",
                "down": "mlp.fc2",
            },
            inputs=(("q", "k", "v"), ("o",), ("up",), ("down",)),
            mlp=("mlp",),
            embeddings=("model.embed_tokens", "model.rotary_emb"),
            final=("model.final_layernorm",),
        ),
        Architecture(
            model_type="gpt2",
            layers="transformer.h",
            attention="attn",
            roles={"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
            inputs=(("qkv",), ("o",), ("up",), ("down",)),
            mlp=("mlp",),
            embeddings=("transformer.wte", "transformer.wpe"),
            final=("transformer.ln_f",),
            base_prefix="transformer",
            conv1d=True,
        ),
        Architecture(
            model_type="gpt_neox",
            layers="gpt_neox.layers",
            attention="attention",
            roles={
                "qkv": "attention.query_key_value",
                "o": "attention.dense",
                "up": "mlp.dense_h_to_4h",
                "down": "mlp.dense_4h_to_h",
            },
            inputs=(("qkv",), ("o",), ("up",), ("down",)),
            mlp=("mlp",),
            embeddings=("gpt_neox.embed_in", "gpt_neox.rotary_emb"),
            final=("gpt_neox.final_layer_norm",),
            stored_head="embed_out",
            base_prefix="gpt_neox",
            qkv_by_head=True,
        ),
        Architecture(
            model_type="opt",
            layers="model.decoder.layers",
            attention="self_attn",
            roles={
                "q": "self_attn.q_proj",
                "k": "self_attn.k_proj",
                "v": "self_attn.v_proj",
                "o": "self_attn.out_proj",
                "up": "fc1",
                "down": "fc2",
            },
            inputs=(("q", "k", "v"), ("o",), ("up",), ("down",)),
            mlp=("fc1", "activation_fn", "fc2"),
            embeddings=("model.decoder.embed_tokens", "model.decoder.embed_positions"),
            final=("model.decoder.final_layer_norm",),
        ),
    )
}


def architecture(model_type: str) -> Architecture:
    """The row of a `config.model_type`. Raises ValueError naming the rows there are."""
    try:
        return ARCHITECTURES[model_type]
    except KeyError:
        near = difflib.get_close_matches(model_type, ARCHITECTURES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no architecture row for model_type {model_type!r}; there are {', '.join(sorted(ARCHITECTURES))}{hint}. "
            "A new one is one row in compress/architecture.py"
        ) from None
