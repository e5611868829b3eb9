"""What a checkpoint's architecture computes, read from its config: everything the standalone torch file is specialised for.

Each family is a few values of the same description, so that one set of templates writes all of them.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from compress.architecture import Architecture, architecture
from compress.source.pieces import refuse
from compress.source.rotary import TYPED, Rope, rope_of
from compress.validation import Finite, Positive, Size

QUERIES, KEYS = "HEADS * HEAD_DIM", "KV_HEADS * HEAD_DIM"  # in the names of the file's constants

_GEMMA = ("gemma", "gemma2", "gemma3_text")

# transformers' names → torch; the tanh form of gelu has three names there
ACTIVATIONS = {
    "silu": "F.silu({})",
    "swish": "F.silu({})",
    "gelu": "F.gelu({})",
    "gelu_new": 'F.gelu({}, approximate="tanh")',
    "gelu_fast": 'F.gelu({}, approximate="tanh")',
    "gelu_pytorch_tanh": 'F.gelu({}, approximate="tanh")',
    "relu": "F.relu({})",
    "relu2": "F.relu({}).square()",
    "tanh": "torch.tanh({})",
}

# (attribute of the file's Block, name in the checkpoint). Most families normalise before attention and before the MLP …
_PRE = (("attention_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm"))
# … gemma2 around both: what others call post_attention_layernorm, and put before the MLP, is behind the attention here.
_SANDWICH = (
    ("attention_norm", "input_layernorm"),
    ("attention_out_norm", "post_attention_layernorm"),
    ("mlp_norm", "pre_feedforward_layernorm"),
    ("mlp_out_norm", "post_feedforward_layernorm"),
)


# Checked as they are made: each of these values becomes text of a program.
@dataclass(frozen=True, config=TYPED)
class Family:
    """Sizes, switches and names of parts in the checkpoint; names of block parts are relative to a decoder layer."""

    row: Architecture
    config: Any
    vocabulary: Positive
    positions: Positive
    d_model: Positive
    d_ff: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    layers: Positive
    eps: Finite
    activation: str  # with {} for the argument
    norm: str  # class: RMSNorm or nn.LayerNorm
    norm_adds_one: bool  # gemma stores weight − 1
    norms: tuple[tuple[str, str], ...]  # (attribute of Block, name in the checkpoint)
    order: str  # residual | parallel | after
    qkv: str  # separate | blocks | heads: how a fused q, k, v projection is laid out
    qk_norm: str  # none | head | all
    rope: Rope | None
    rope_layers: tuple[bool, ...]
    windows: tuple[Positive | None, ...]
    scales: tuple[Finite | None, ...]  # of the attention scores, None for 1/√head_dim
    score_cap: Finite | None
    logit_cap: Finite | None
    embed_scale: Finite | None
    residual_scale: Finite | None
    logit_divisor: Finite | None
    position_offset: Size  # rows of the learned positions that no token reads
    affine_norms: bool
    final_norm: bool
    embedding: Positive  # width of the embeddings; OPT-350m has it narrower than the layers
    tied: bool

    @property
    def projected(self) -> bool:
        """Whether the embeddings need a linear into the layers, and one out of them."""
        return self.embedding != self.d_model

    @property
    def learned_positions(self) -> bool:
        """Whether positions are embedded; else they are rotary."""
        return self.rope is None

    def shape(self, role: str) -> tuple[int, int]:
        """(d_in, d_out) of a role's linear in the original model."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q": (self.d_model, q),
            "k": (self.d_model, kv),
            "v": (self.d_model, kv),
            "qkv": (self.d_model, q + 2 * kv),
            "o": (q, self.d_model),
            "gate": (self.d_model, self.d_ff),
            "up": (self.d_model, self.d_ff),
            "gate_up": (self.d_model, 2 * self.d_ff),
            "down": (self.d_ff, self.d_model),
        }[role]


def role_shape(family: Family, role: str) -> tuple[str, str]:
    """(d_in, d_out) of a role's linear in the names of the file's constants."""
    kv = KEYS if family.kv_heads != family.heads else QUERIES
    fused = "(HEADS + 2 * KV_HEADS) * HEAD_DIM" if family.kv_heads != family.heads else f"3 * {QUERIES}"
    return {
        "q": ("D_MODEL", QUERIES),
        "k": ("D_MODEL", kv),
        "v": ("D_MODEL", kv),
        "qkv": ("D_MODEL", fused),
        "o": (QUERIES, "D_MODEL"),
        "gate": ("D_MODEL", "D_FF"),
        "up": ("D_MODEL", "D_FF"),
        "gate_up": ("D_MODEL", "2 * D_FF"),
        "down": ("D_FF", "D_MODEL"),
    }[role]


def describe(config: Any) -> Family:
    """The description of a transformers config.

    Raises NotImplementedError naming what is supported, where something is not; ValueError for values that describe no model.
    """
    try:
        return _described(config)
    except ValidationError as error:
        first = error.errors()[0]
        where, given = ".".join(map(str, first["loc"])), str(first["input"])[:100]
        raise ValueError(f"config.json describes no model: {where}: {first['msg']}; given {given!r}") from None
    except (TypeError, AttributeError, KeyError, ArithmeticError) as error:  # arithmetic with whatever it holds
        raise ValueError(f"config.json describes no model: {type(error).__name__}: {str(error)[:200]}") from None


def _described(config: Any) -> Family:
    kind = config.model_type
    row = architecture(kind)
    heads, d_model = config.num_attention_heads, config.hidden_size
    # A head need not be d_model / heads wide (gemma, qwen3), and a config may hold None for the usual width.
    head_dim = getattr(config, "head_dim", None) or d_model // heads
    layers = config.num_hidden_layers
    gpt2, opt, neox, phi = (kind == name for name in ("gpt2", "opt", "gpt_neox", "phi"))
    learned = gpt2 or opt
    refuse(gpt2 and config.add_cross_attention, "cross attention", "decoder-only models")
    refuse(getattr(config, "use_bidirectional_attention", None), "bidirectional attention", "causal attention")
    # gpt2, opt and gpt_neox have no heads that share keys and values, and no entry for them.
    kv_heads = heads if (learned or neox) else getattr(config, "num_key_value_heads", None) or heads
    return Family(
        row=row,
        config=config,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        d_model=d_model,
        d_ff=_d_ff(config),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layers=layers,
        eps=float(_first(config, "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", default=1e-5)),
        activation=_activation(config),
        norm="nn.LayerNorm" if learned or neox or phi else "RMSNorm",
        norm_adds_one=kind in _GEMMA,
        norms=_norms(config),
        order=_order(config),
        qkv="heads" if neox else "blocks" if "qkv" in row.roles else "separate",
        qk_norm="head"
        if kind in ("qwen3", "gemma3_text") or (phi and config.qk_layernorm)
        else "all"
        if kind == "olmo2"
        else "none",
        rope=None if learned else rope_of(config, head_dim),
        # smollm3's no_rope_layers holds 1 where a layer does have rotary positions.
        rope_layers=tuple(bool(v) for v in getattr(config, "no_rope_layers", None) or [not learned] * layers),
        windows=_windows(config),
        scales=_scales(config, head_dim),
        score_cap=getattr(config, "attn_logit_softcapping", None),
        logit_cap=getattr(config, "final_logit_softcapping", None),
        # gemma multiplies embeddings by √d_model without an entry in its config; granite has one.
        embed_scale=d_model**0.5 if kind in _GEMMA else getattr(config, "embedding_multiplier", None),
        residual_scale=getattr(config, "residual_multiplier", None),
        logit_divisor=getattr(config, "logits_scaling", None),
        position_offset=2 if opt else 0,
        affine_norms=not opt or config.layer_norm_elementwise_affine,
        final_norm=not opt or (config.do_layer_norm_before and not config._remove_final_layer_norm),
        embedding=config.word_embed_proj_dim if opt else d_model,
        tied=bool(config.tie_word_embeddings),
    )


def _first(config: Any, *names: str, default: Any) -> Any:
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), default)


def _d_ff(config: Any) -> int:
    # gpt2's n_inner is None where the MLP is four times as wide as the model.
    return _first(config, "intermediate_size", "ffn_dim", "n_inner", default=4 * config.hidden_size)


def _activation(config: Any) -> str:
    name = _first(config, "hidden_activation", "hidden_act", "activation_function", default="silu")
    refuse(name not in ACTIVATIONS, f"activation {name!r}", ", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]


def _norms(config: Any) -> tuple[tuple[str, str], ...]:
    return {
        "gemma2": _SANDWICH,
        "gemma3_text": _SANDWICH,
        # olmo2 normalises what leaves attention and MLP, and nothing that enters.
        "olmo2": (_SANDWICH[1], _SANDWICH[3]),
        # One norm for both branches, which run side by side.
        "phi": (("norm", "input_layernorm"),),
        "gpt2": (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")),
        "opt": (("attention_norm", "self_attn_layer_norm"), ("mlp_norm", "final_layer_norm")),
    }.get(config.model_type, _PRE)


def _order(config: Any) -> str:
    # Parallel: attention and MLP read the same hidden state, and both are added to it.
    if config.model_type == "phi" or (config.model_type == "gpt_neox" and config.use_parallel_residual):
        return "parallel"
    return "after" if config.model_type == "opt" and not config.do_layer_norm_before else "residual"


def _scales(config: Any, head_dim: int) -> tuple[float | None, ...]:
    scale = None
    # Scores that are not divided at all.
    if config.model_type == "gpt2" and not config.scale_attn_weights:
        scale = 1.0
    # None stands for the usual 1/√head_dim, so that only a scale that differs is written into the file.
    if (scalar := getattr(config, "query_pre_attn_scalar", None)) is not None and scalar != head_dim:
        scale = float(scalar) ** -0.5
    scale = getattr(config, "attention_multiplier", None) or scale
    # gpt2: layer i divides by i + 1 as well.
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        return tuple((scale or head_dim**-0.5) / (i + 1) for i in range(config.num_hidden_layers))
    return (scale,) * config.num_hidden_layers


def _windows(config: Any) -> tuple[int | None, ...]:
    """Sliding window of each layer; one that no sequence can leave counts as none."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        kinds = [
            "sliding_attention" if config.model_type in ("mistral", "phi3") else "full_attention"
        ] * config.num_hidden_layers
    known = ("full_attention", "sliding_attention")
    refuse(unknown := sorted(set(kinds) - set(known)), f"layer type {unknown}", ", ".join(known))
    if window is None or window >= config.max_position_embeddings:
        return (None,) * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
