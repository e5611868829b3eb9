"""Source of attention with a cache of latents, for the standalone file: `compress.nn.latent` without transformers' caches."""

from __future__ import annotations

from collections.abc import Mapping

from compress.source.family import QUERIES, Family, role_shape
from compress.source.text import in_place, text


def latent_class(family: Family, biases: Mapping[str, bool], scale: float) -> str:
    """The class; `biases` of the q and o linears, `scale` multiplies cosine and sine."""
    # As in `role_shape`: a constant of its own only where query heads share keys and values.
    heads = "KV_HEADS" if family.kv_heads != family.heads else "HEADS"
    g = "G" if heads == "KV_HEADS" else "H"
    (d_in, d_q), (d_o, d_out) = role_shape(family, "q"), role_shape(family, "o")
    windowed = any(family.windows)
    # A list times a bool is the list or nothing: the file holds only what this model needs.
    body = [
        *["self.window = window"] * windowed,
        "self.key_rank, self.value_rank = key_rank, value_rank",
        f"self.q = nn.Linear({d_in}, {d_q}{'' if biases['q'] else ', bias=False'})",
        f"self.o = nn.Linear({d_o}, {d_out}{'' if biases['o'] else ', bias=False'})",
        *["self.q_norm = RMSNorm(HEAD_DIM)", "self.k_norm = RMSNorm(HEAD_DIM)"] * (family.qk_norm == "head"),
        "self.basis = nn.Parameter(torch.empty(rank, D_MODEL))",
        f"self.key_rows = nn.Parameter(torch.empty({heads}, HEAD_DIM, key_rank))",
        f"self.key_bias = nn.Parameter(torch.empty({heads}, HEAD_DIM))",
        f"self.value_rows = nn.Parameter(torch.empty({heads}, HEAD_DIM, value_rank))",
        f"self.value_bias = nn.Parameter(torch.empty({heads}, HEAD_DIM))",
        'self.register_buffer("frequencies", torch.empty(HEAD_DIM // 2))',
    ]
    # Where some layers slide and others do not, the window is the layer's own.
    visible = "visible(T, S, self.window, x.device)" if None in family.windows else "visible(T, S, WINDOW, x.device)"
    visible = visible if windowed else "visible(T, S, x.device)"
    # yarn scales cosine and sine; a factor of 1 is not written.
    turned = f"{scale!r} * " if scale != 1.0 else ""
    forward = [
        "q = self.q(x).view(B, T, HEADS, HEAD_DIM)",
        "c = F.linear(x, self.basis)  # (B, T, R): all that is cached",
        "if past is not None:",
        "    c = torch.cat([past[0][:, 0], c], dim=1)",
        "S = c.shape[1]",
        "k = F.linear(c[..., : self.key_rank], self.key_rows.flatten(0, 1), self.key_bias.flatten())",
        f"k = k.view(B, S, {heads}, HEAD_DIM)",
        *["q, k = self.q_norm(q), self.k_norm(k)"] * (family.qk_norm == "head"),
        "angles = torch.arange(S, device=x.device)[:, None].float() * self.frequencies  # (S, C/2)",
        f"cos, sin = ({turned}angles.cos()).to(x.dtype), ({turned}angles.sin()).to(x.dtype)",
        "q = rotate(q.transpose(1, 2), cos[-T:], sin[-T:])  # (B, T, H, C) → (B, H, T, C)",
        f"k = rotate(k.transpose(1, 2), cos, sin)  # (B, S, {g}, C) → (B, {g}, S, C)",
        f"q = q.unflatten(1, ({heads}, -1)) * HEAD_DIM**-0.5  # (B, {g}, n, T, C): n query heads share a key and value head",
        f'scores = torch.einsum("bgntc,bgsc->bgnts", q, k).masked_fill(~{visible}, float("-inf"))',
        "p = scores.float().softmax(dim=-1).to(x.dtype)",
        'mean = torch.einsum("bgnts,bsr->bgntr", p, c[..., -self.value_rank :])  # averages of latents: no value is rebuilt',
        'y = torch.einsum("bgntr,gcr->bgntc", mean, self.value_rows) + self.value_bias[:, None, None]',
        "y = y.flatten(1, 2).transpose(1, 2)  # (B, T, H, C)",
        f"return self.o(y.reshape(B, T, {QUERIES})), (c[:, None], c[:, None, :, :0])",
    ]
    window = ", window: int | None = None" * windowed
    return text(f'''
        class LatentAttention(nn.Module):
            """Causal attention that caches a latent c_t = basis @ x_t of R numbers instead of keys and values.

            Keys are rebuilt on read and turned at their positions; the value rows are applied to averages of latents.
            """

            frequencies: Tensor

            def __init__(self, rank: int, key_rank: int, value_rank: int{window}) -> None:
                super().__init__()
                {in_place(body, 16)}

            def forward(self, x: Tensor, rope: Rope, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
                """x (B, T, D) → (B, T, D), with the latents (B, 1, S, R) of all tokens so far in the place of keys"""
                B, T, _ = x.shape
                {in_place(forward, 16)}
        ''')
