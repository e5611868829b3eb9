"""f(x) = x: the inner modules of an MLP that its layer runs inline, where its last one stands for the whole."""

from __future__ import annotations

from compress.kinds.contract import Kind
from compress.nn.mlp import PassThrough


class Through(Kind):
    """`occupied` keeps an empty weight under the parameter's name, so that a loader that does not know us stops."""

    kind = "pass_through"
    replaces = "mlp"
    runtime = PassThrough
    passes_through = True

    occupied: bool
