"""What a control may cost: the rank of an affine map, or the channels of a pruned MLP, of as many multiply-adds as a surrogate.

Counted per token as `compress.evaluating.cost` does: every entry of a matrix once, every operation of a program once.
"""

from __future__ import annotations

from compress.architecture import Architecture


def surrogate_multiply_adds(d_model: int, inputs: int, outputs: int, affine: int, operations: int) -> int:
    """Of a SymbolicMLP: basis (inputs + affine, d_model), outer weight (d_model, outputs + affine), and its program.

    >>> surrogate_multiply_adds(128, inputs=32, outputs=8, affine=16, operations=700)
    9916
    """
    return d_model * (inputs + outputs + 2 * affine) + operations


def equal_rank(multiply_adds: int, d_model: int) -> int:
    """Rank of the affine MLP that costs at least as much: rounded up, in favour of the control.

    >>> equal_rank(9916, d_model=128)
    39
    """
    # −(−a // b) is a / b rounded up.
    return min(d_model, -(-multiply_adds // (2 * d_model)))


def equal_channels(multiply_adds: int, d_model: int, architecture: Architecture) -> int:
    """Intermediate channels that a pruned MLP of that cost keeps, rounded up: each is read once a gate or up, written once.

    >>> from compress.architecture import architecture
    >>> equal_channels(9916, 128, architecture("qwen2"))
    26
    """
    # A fused gate and up has two rows for every channel.
    return -(-multiply_adds // (d_model * (len(architecture.mlp_roles) + ("gate_up" in architecture.roles))))
