"""Source of the classes of a standalone model: norm, rotary positions, attention, MLP, block, model.

Every function returns the text for one family, with no branch that this family does not take.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from compress.source.family import KEYS, QUERIES, Family, role_shape
from compress.source.pieces import Switch
from compress.source.text import in_place, text


def constants(family: Family, end: Sequence[int], body: str) -> str:
    """Those sizes and factors that `body` names, what belongs together on one line."""
    rope = family.rope
    groups: list[dict[str, object]] = [
        {"VOCABULARY": family.vocabulary, "POSITIONS": family.positions},
        {"D_MODEL": family.d_model, "D_FF": family.d_ff, "EMBEDDING": family.embedding if family.projected else None},
        {
            "HEADS": family.heads,
            "KV_HEADS": family.kv_heads if family.kv_heads != family.heads else None,
            "HEAD_DIM": family.head_dim,
            "WINDOW": max((w for w in family.windows if w), default=None),
        },
        {
            "ROPE_THETA": rope.theta if rope and not rope.note else None,
            "ROPE_DIMS": rope.dims if rope and rope.dims != family.head_dim else None,
            "NORM_EPS": family.eps,
        },
        {"ROPE_ROWS": rope.rows if rope and rope.rows else None},  # of the frequencies, by layer
        {"ATTENTION_SCALE": family.scales[0] if len(set(family.scales)) == 1 else None, "ATTENTION_CAP": family.score_cap},
        {"EMBEDDING_SCALE": family.embed_scale, "RESIDUAL_SCALE": family.residual_scale},
        {"LOGIT_DIVISOR": family.logit_divisor, "LOGIT_CAP": family.logit_cap},
    ]
    lines = []
    for group in groups:
        if given := {
            name: repr(value) for name, value in group.items() if value is not None and re.search(rf"\b{name}\b", body)
        }:
            lines.append(f"{', '.join(given)} = {', '.join(given.values())}")
    tokens = "{" + ", ".join(map(str, end)) + "}" if end else "set()"
    return "\n".join([*lines, f"END: set[int] = {tokens}  # generation stops after one of these tokens"])


def norm_class(family: Family) -> str:
    """RMSNorm in the rounding of the family; LayerNorm is torch's own."""
    if family.norm != "RMSNorm":
        return ""
    # Where the product with the weight is rounded: in float32 and then back (gemma, olmo2), or after x is in its dtype again.
    if family.norm_adds_one:
        doc, last = "x / rms(x) · (1 + weight)", "return (x32 * (1 + self.weight.float())).to(x.dtype)"
    elif family.row.model_type == "olmo2":
        doc, last = "x / rms(x) · weight", "return (self.weight * x32).to(x.dtype)"
    else:
        doc, last = "x / rms(x) · weight", "return self.weight * x32.to(x.dtype)"
    return text(f'''
        class RMSNorm(nn.Module):
            """{doc}, computed in float32."""

            def __init__(self, size: int) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.empty(size))

            def forward(self, x: Tensor) -> Tensor:
                """x (..., size) → (..., size)"""
                x32 = x.float()
                x32 = x32 * torch.rsqrt(x32.pow(2).mean(dim=-1, keepdim=True) + NORM_EPS)
                {last}
        ''')


def rotary_functions(family: Family) -> str:
    """Angles of the positions, and their use; nothing where positions are learned."""
    if (rope := family.rope) is None:
        return ""
    partial = rope.dims != family.head_dim
    r, size = ("R", "ROPE_DIMS") if partial else ("C", "HEAD_DIM")
    # Frequencies that follow a rule are stored with the weights; plain ones follow from ROPE_THETA.
    if rope.note:
        signature, scale = "positions: Tensor, frequencies: Tensor", f"{rope.scale!r} * " if rope.scale != 1 else ""
        angles = ["angles = positions[:, None].float() * frequencies"]
    else:
        signature, scale = "positions: Tensor", ""
        angles = [
            f"frequencies = 1 / ROPE_THETA ** (torch.arange(0, {size}, 2, device=positions.device).float() / {size})",
            "angles = positions[:, None].float() * frequencies",
        ]
    halves = [
        f"a, b = {'turned' if partial else 'x'}.chunk(2, dim=-1)  # (B, H, T, {r}/2) each",
        f"return torch.cat([a * cos - b * sin, b * cos + a * sin{', kept' if partial else ''}], dim=-1)",
    ]
    turn = ["turned, kept = x[..., :ROPE_DIMS], x[..., ROPE_DIMS:]"] * partial + halves
    return text(f'''
        def rotary({signature}) -> Rope:
            """Cosine and sine of the angles at positions (T,), each (T, {r}/2)."""
            {in_place(angles, 12)}
            return {scale}angles.cos(), {scale}angles.sin()


        def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            """Turns dimension i of every head together with i + {r}/2{", R = ROPE_DIMS" * partial}; x (B, H, T, C)."""
            {in_place(turn, 12)}
        ''')


def mask_function(family: Family) -> str:
    """Which tokens see which: causal, with a window where a layer has one."""
    if any(family.windows):
        some = None in family.windows
        last = "seen & (key > query - window)"
        return text(f'''
            def visible(new: int, total: int, window: int{" | None" * some}, device: torch.device) -> Tensor:
                """(T, S) True where a new token may look: at itself and earlier ones, no further back than the window."""
                query = torch.arange(total - new, total, device=device)[:, None]  # (T, 1)
                key = torch.arange(total, device=device)  # (S,)
                seen = key <= query
                return {"seen if window is None else " * some}{last}
            ''')
    return text('''
        def visible(new: int, total: int, device: torch.device) -> Tensor:
            """(T, S) True where a new token may look: at itself and earlier ones."""
            return torch.arange(total, device=device) <= torch.arange(total - new, total, device=device)[:, None]
        ''')


def attention_class(
    family: Family, linears: Mapping[str, str], arguments: Sequence[str], switch: Switch | None = None, everywhere: bool = False
) -> str:
    """`linears`: role → the expression that builds it; `arguments`: parameters of the constructor, with their types; `switch`:
    another attention function, in some layers or `everywhere`.
    """
    shared = f"; {family.heads // family.kv_heads} query heads share one key and value head" * (family.heads != family.kv_heads)
    positions = "rotary positions" if family.rope else "positions known from the embeddings"
    names = [argument.partition(":")[0] for argument in arguments]
    # A switch of layers is an attribute; the other arguments make the linears below.
    body = [
        f"self.{name} = {name}" for name in names if name in ("window", "rotary", "scale", *([switch.name] if switch else []))
    ]
    body += [f"self.{role} = {linears[role]}" for role in ("qkv", "q", "k", "v", "o") if role in linears]
    if family.qk_norm != "none":
        norm = "nn.LayerNorm(HEAD_DIM, eps=NORM_EPS)" if family.norm != "RMSNorm" else "RMSNorm(HEAD_DIM)"
        # olmo2 norms the queries (or keys) of all heads at once, the others each head by itself.
        wide = f"RMSNorm({QUERIES})", f"RMSNorm({role_shape(family, 'k')[1]})"
        q, k = wide if family.qk_norm == "all" else (norm, norm)
        body += [f"self.q_norm = {q}", f"self.k_norm = {k}"]
    rope = "rope: Rope, " if family.rope else ""
    letter = "G" if family.kv_heads != family.heads else "H"
    forward = [*_project(family), *_turn(family, names), *_attend(family, names, switch, everywhere)]
    return text(f'''
        class Attention(nn.Module):
            """Causal attention, {positions}{shared}."""

            def __init__({", ".join(["self", *arguments])}) -> None:
                super().__init__()
                {in_place(body, 16)}

            def forward(self, x: Tensor, {rope}past: KeyValue | None) -> tuple[Tensor, KeyValue]:
                """x (B, T, D) → (B, T, D), with the keys and values (B, {letter}, S, C) of all tokens so far"""
                B, T, _ = x.shape
                {in_place(forward, 16)}
        ''')


def _project(family: Family) -> list[str]:
    groups = "KV_HEADS" if family.kv_heads != family.heads else "HEADS"
    g = "G" if groups == "KV_HEADS" else "H"
    split = [("q", "HEADS", "H"), ("k", groups, g), ("v", groups, g)]
    if family.qkv == "heads":
        return [
            "qkv = self.qkv(x).view(B, T, HEADS, 3 * HEAD_DIM).transpose(1, 2)  # (B, T, H·3C) → (B, H, T, 3C)",
            "q, k, v = qkv.chunk(3, dim=-1)  # (B, H, T, C) each",
        ]
    if family.qkv == "blocks":
        # One number splits into parts of one size.
        sizes = f"[{QUERIES}, {KEYS}, {KEYS}]" if groups == "KV_HEADS" else QUERIES
        first = f"q, k, v = self.qkv(x).split({sizes}, dim=-1)  # (B, T, H·C), (B, T, {g}·C), (B, T, {g}·C)"
        return [first, *(_heads(name, f"{name}", many, letter) for name, many, letter in split)]
    lines = []
    for name, many, letter in split:
        normed = name != "v" and family.qk_norm == "all"
        lines.append(_heads(name, f"self.{name}_norm(self.{name}(x))" if normed else f"self.{name}(x)", many, letter))
    if family.qk_norm == "head":
        lines.append("q, k = self.q_norm(q), self.k_norm(k)  # each head by itself, over C")
    return lines


def _heads(name: str, value: str, many: str, letter: str) -> str:
    return f"{name} = {value}.view(B, T, {many}, HEAD_DIM).transpose(1, 2)  # (B, T, {letter}·C) → (B, {letter}, T, C)"


def _turn(family: Family, names: Sequence[str]) -> list[str]:
    lines = []
    if "rotary" in names:
        lines = ["if self.rotary:", "    q, k = rotate(q, *rope), rotate(k, *rope)"]
    elif family.rope:
        lines = ["q, k = rotate(q, *rope), rotate(k, *rope)"]
    letter = "G" if family.kv_heads != family.heads else "H"
    return [
        *lines,
        "if past is not None:",
        f"    k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)  # (B, {letter}, S, C)",
    ]


def _attend(family: Family, names: Sequence[str], switch: Switch | None, everywhere: bool) -> list[str]:
    window = "self.window" if "window" in names else "WINDOW" if any(family.windows) else ""
    scale = "self.scale" if "scale" in names else "ATTENTION_SCALE" if family.scales[0] is not None else ""
    repeated = family.kv_heads != family.heads
    mask = ", ".join(["T", "k.shape[2]", *([window] if window else []), "x.device"])
    # torch's fused attention knows no cap, so the scores are written out.
    if family.score_cap is not None:
        lines = []
        if repeated:
            lines.append(
                "k_all, v_all = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))  # (B, G, S, C) → (B, H, S, C)"
            )
        keys, values = ("k_all", "v_all") if repeated else ("k", "v")
        return [
            *lines,
            f"scores = q @ {keys}.transpose(2, 3) * {scale or 'HEAD_DIM**-0.5'}  # (B, H, T, S)",
            "scores = ATTENTION_CAP * torch.tanh(scores / ATTENTION_CAP)",
            f'scores = scores.masked_fill(~visible({mask}), float("-inf"))',
            f"y = scores.float().softmax(dim=-1).to(x.dtype) @ {values}  # (B, H, T, C)",
            _out(),
        ]
    more = [*[f"scale={scale}"] * bool(scale), *["enable_gqa=True"] * repeated]
    # Without a window the prefill is plainly causal, and needs no mask.
    attend = ["q", "k", "v", "attn_mask=mask", *["is_causal=past is None"] * (not window), *more]
    dense = f"y = F.scaled_dot_product_attention({', '.join(attend)})  # (B, H, T, C)"
    return [
        f"mask = {'' if window else 'None if past is None else '}visible({mask})",
        *(_switched(family, dense, scale, switch, everywhere) if switch else [dense]),
        _out(),
    ]


def _switched(family: Family, dense: str, scale: str, switch: Switch, everywhere: bool) -> list[str]:
    """The branch of the layers that attend by another function."""
    # With dimensions for batch and heads, which the other functions expect.
    mask = "mask[None, None]" if any(family.windows) else "None if mask is None else mask[None, None]"
    one = f"y = {switch.attend(mask, scale)}  # (B, H, T, C)"
    if everywhere:
        return [one]
    return [f"if self.{switch.name} is None:", f"    {dense}", "else:", f"    {one}"]


def _out() -> str:
    return f"return self.o(y.transpose(1, 2).reshape(B, T, {QUERIES})), (k, v)  # (B, H, T, C) → (B, T, H·C) → (B, T, D)"


def mlp_class(family: Family, linears: Mapping[str, str], arguments: Sequence[str]) -> str:
    """The MLP of the family; `linears`: role → the expression that builds it, `arguments`: parameters of the constructor."""
    # "F.silu({})" → "silu", as the docstring says it.
    act = family.activation.partition(".")[2].partition("(")[0]
    if "gate" in linears:
        doc = f"down({act}(gate(x)) · up(x))"
        forward = [
            f"return self.down({family.activation.format('self.gate(x)')} * self.up(x))  # (B, T, D) → (B, T, F) → (B, T, D)"
        ]
    elif "gate_up" in linears:
        doc = f"down({act}(gate) · up), gate and up from one projection"
        forward = [
            "gate, up = self.gate_up(x).chunk(2, dim=-1)  # (B, T, 2F) → (B, T, F) each",
            f"return self.down(up * {family.activation.format('gate')})",
        ]
    else:
        doc = f"down({act}(up(x)))"
        forward = [f"return self.down({family.activation.format('self.up(x)')})  # (B, T, D) → (B, T, F) → (B, T, D)"]
    body = [f"self.{role} = {text}" for role, text in linears.items()]
    return text(f'''
        class MLP(nn.Module):
            """{doc}"""

            def __init__({", ".join(["self", *arguments])}) -> None:
                super().__init__()
                {in_place(body, 16)}

            def forward(self, x: Tensor) -> Tensor:
                """x (B, T, D) → (B, T, D)"""
                {in_place(forward, 16)}
        ''')
