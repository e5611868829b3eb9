"""Source of the outer classes of a standalone model: the block, the table of layers, the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from compress.source.family import Family
from compress.source.rotary import Rope
from compress.source.text import in_place, text


def norm_call(family: Family, size: str = "D_MODEL") -> str:
    """The expression that makes a norm of the family."""
    if family.norm == "RMSNorm":
        return f"RMSNorm({size})"
    return f"nn.LayerNorm({size}, eps=NORM_EPS{'' if family.affine_norms else ', elementwise_affine=False'})"


def block_class(family: Family, attention: str = "Attention") -> str:
    """One layer: the order of norms, attention, MLP and residuals is the family's."""
    slots = [name for name, _ in family.norms]

    def normed(slot: str, value: str) -> str:
        return f"self.{slot}({value})" if slot in slots else value

    scaled = " * RESIDUAL_SCALE" if family.residual_scale is not None else ""
    rope = "rope, " if family.rope else ""
    attend = f"a, kv = self.attention({{}}, {rope}past)"
    if family.order == "parallel":
        doc = "Attention and MLP side by side, both added to the residual stream."
        # One norm serves both branches (phi).
        if slots == ["norm"]:
            forward = ["h = self.norm(x)", attend.format("h"), "return x + a + self.mlp(h), kv"]
        else:
            forward = [attend.format(normed("attention_norm", "x")), f"return x + a + self.mlp({normed('mlp_norm', 'x')}), kv"]
    elif family.order == "after":
        doc = "Attention, then the MLP; the residual stream itself is normed after each."
        forward = [
            attend.format("x"),
            "x = self.attention_norm(x + a)",
            "return self.mlp_norm(x + self.mlp(x)), kv",
        ]
    else:
        doc = "Attention, then the MLP, each added to the residual stream."
        forward = [
            attend.format(normed("attention_norm", "x")),
            f"x = x + {normed('attention_out_norm', 'a')}{scaled}",
            f"return x + {normed('mlp_out_norm', 'self.mlp(' + normed('mlp_norm', 'x') + ')')}{scaled}, kv",
        ]
    body = [f"self.{slot} = {norm_call(family)}" for slot in slots]
    types = "rope: Rope, " if family.rope else ""
    return text(f'''
        class Block(nn.Module):
            """{doc}"""

            def __init__(self, attention: {attention}, mlp: nn.Module) -> None:
                super().__init__()
                self.attention, self.mlp = attention, mlp
                {in_place(body, 16)}

            def forward(self, x: Tensor, {types}past: KeyValue | None) -> tuple[Tensor, KeyValue]:
                """x (B, T, D) → (B, T, D), with the layer's keys and values"""
                {in_place(forward, 16)}
        ''')


def layer_table(rows: Sequence[tuple[str, str]], columns: Mapping[str, Sequence[str]]) -> str:
    """`rows`: per layer the expressions of its attention and its MLP; `columns`: what the arguments of a class are called."""
    signatures = ", ".join(f"{name}({', '.join(args)})" for name, args in columns.items() if args)
    doc = f"What every layer is made of{': ' * bool(signatures)}{signatures}."
    # Runs of equal rows: a model whose layers are all alike is one line.
    groups = [list(group) for _, group in groupby(enumerate(rows), key=lambda item: item[1])]
    if len(groups) == 1 and len(rows) > 1:
        table = f"[{_block(rows[0])} for _ in range({len(rows)})]"
    else:
        table = "\n".join(["[", *(line for group in groups for line in _lines(group)), "]"])
    return "\n".join(["def layers() -> list[Block]:", f'    """{doc}"""', f"    return {table}"])


def _block(parts: tuple[str, str]) -> str:
    return f"Block({', '.join(parts)})"


def _lines(group: Sequence[tuple[int, tuple[str, str]]]) -> list[str]:
    """Rows of the table: one layer each, but a run of equal ones at once."""
    (first, parts), last = group[0], group[-1][0]
    # Two of them are no shorter as a loop.
    if len(group) < 3:
        return [f"{_block(parts)},  # {layer}" for layer, _ in group]
    return [f"*({_block(parts)} for _ in range({len(group)})),  # {first} to {last}"]


def model_class(family: Family, head: str, *, links: Sequence[str]) -> str:
    """`head`: what builds the output projection, "" where the embeddings serve; `links`: classes that read other modules."""
    rope, projected = family.rope, family.projected
    body = [
        f"self.embed = nn.Embedding(VOCABULARY, {'EMBEDDING' if projected else 'D_MODEL'})",
        *["self.project_in = nn.Linear(EMBEDDING, D_MODEL, bias=False)"] * projected,
        *["self.positions = nn.Embedding(POSITIONS, D_MODEL)"] * family.learned_positions,
        "self.layers = nn.ModuleList(layers())",
        *[f"self.norm = {norm_call(family)}"] * family.final_norm,
        *["self.project_out = nn.Linear(D_MODEL, EMBEDDING, bias=False)"] * projected,
        *[f"self.head = {head}"] * bool(head),
    ]
    if rope and rope.note:
        rows = f"{max(rope.rows) + 1}, " if rope.rows else ""
        body.append(f'self.register_buffer("frequencies", torch.empty({rows}{rope.dims // 2}))  # {rope.note}')
    if links:
        body += [
            "for module in self.modules():",
            f"    if isinstance(module, {' | '.join(links)}) and module.owner is not None:",
            "        module.link(self.get_submodule(module.owner))",
        ]
    embedded = "self.project_in(self.embed(ids))" if projected else "self.embed(ids)"
    embedded += (
        " * EMBEDDING_SCALE" * (family.embed_scale is not None) + " + self.positions(positions)" * family.learned_positions
    )
    out = "self.norm(x)" if family.final_norm else "x"
    out = f"self.project_out({out})" if projected else out
    logits = f"self.head({out})" if head else f"F.linear({out}, self.embed.weight)"
    logits += " / LOGIT_DIVISOR" * (family.logit_divisor is not None)
    given = "" if rope is None else "ropes[ROPE_ROWS[i]], " if rope.rows else "rope, "
    forward = [
        "seen = 0 if cache is None else cache[0][0].shape[2]",
        "positions = torch.arange(seen, seen + ids.shape[1], device=ids.device)  # (T,)",
        f"x = {embedded}  # (B, T) → (B, T, D)",
        *_positions(rope),
        "new: Cache = []",
        "for i, layer in enumerate(self.layers):",
        f"    x, kv = layer(x, {given}None if cache is None else cache[i])",
        "    new.append(kv)",
        f"logits = {logits}  # (B, T, D) → (B, T, V){'' if head else '; the embeddings are the output weights too'}",
        *["logits = LOGIT_CAP * torch.tanh(logits / LOGIT_CAP)"] * (family.logit_cap is not None),
        "return logits, new",
    ]
    return text(f'''
        class Model(nn.Module):
            """The whole language model."""

            def __init__(self) -> None:
                super().__init__()
                {in_place(body, 16)}

            def forward(self, ids: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
                """ids (B, T) → logits (B, T, V), and the cache to hand in with the tokens that follow"""
                {in_place(forward, 16)}
        ''')


def _positions(rope: Rope | None) -> list[str]:
    """The lines that turn positions into what every attention reads."""
    if rope is None:
        return []
    if rope.rows:
        return [
            "tables = [rotary(positions, frequencies) for frequencies in self.frequencies]",
            "ropes = [(cos.to(x.dtype), sin.to(x.dtype)) for cos, sin in tables]  # by type of layer",
        ]
    return [f"cos, sin = rotary(positions{', self.frequencies' * bool(rope.note)})", "rope = cos.to(x.dtype), sin.to(x.dtype)"]
