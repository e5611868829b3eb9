"""Sums of products of activation rows, in float64 wherever it counts, on any device.

    float64   rows as float64, one product: CPUs, and GPUs that are fast at it (compute capability x.0: V100, A100, H100, …)
    blocks    rows as float32 less their mean, in blocks: each block's product in float32, added into float64; other GPUs
    host      the same, added on the host: MPS, which has no float64

A float32 product of a block of B rows is off by at most B·2⁻²⁴ of Σ|x||y|, and by about √B·2⁻²⁴ in practice: 10⁻⁶ here, where
statistics of a few thousand tokens are themselves off by 10⁻². TF32 would be off by 10⁻³, and is not used.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from torch import Tensor

BLOCK = 256  # rows whose product is made in float32

Path = Literal["float64", "blocks", "host"]


@cache
def path(device: torch.device) -> Path:
    """How sums of products are made of rows on a device."""
    if device.type == "cpu":
        return "float64"
    if device.type == "cuda":
        # x.0 are the chips for computing, at half the rate of float32; others are at a thirty-second or less.
        return "float64" if torch.cuda.get_device_capability(device)[1] == 0 else "blocks"
    return "host"


def added_on(device: torch.device) -> torch.device:
    """Where the float64 sums of rows on a device are kept while they grow."""
    return torch.device("cpu") if path(device) == "host" else device


def add_crossed(scatter: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Add Σ (x − mean x)(y − mean y)ᵀ of rows x (n, d), y (n, e) to `scatter` (d, e) float64; returns both means, float64."""
    same = left is right
    if path(left.device) == "float64":
        x = left.to(torch.float64)  # before anything is summed: bfloat16 has 8 significant bits
        mean_x = x.mean(dim=0)
        x = torch.sub(x, mean_x)
        if same:
            scatter.addmm_(x.T, x)
            return mean_x, mean_x
        y = right.to(torch.float64)
        mean_y = y.mean(dim=0)
        scatter.addmm_(x.T, y - mean_y)
        return mean_x, mean_y
    x, mean_x, rest_x = _near_zero(left, scatter.device)
    y, mean_y, rest_y = (x, mean_x, rest_x) if same else _near_zero(right, scatter.device)
    with _no_tf32():
        for at in range(0, len(x), BLOCK):
            scatter.add_(torch.mm(x[at : at + BLOCK].T, y[at : at + BLOCK]).to(scatter.device))
    # The rows are less a float32 mean, which is not quite theirs.
    scatter.addr_(rest_x, rest_y, alpha=-len(left))
    return mean_x, mean_y


def add_squares(sums: Tensor, rows: Tensor) -> None:
    """Add Σ x xᵀ of rows x (heads, n, d) to `sums` (heads, d, d) float64."""
    if path(rows.device) == "float64":
        rows = rows.to(torch.float64)
        sums.baddbmm_(rows.transpose(1, 2), rows)
        return
    with _no_tf32():
        for at in range(0, rows.shape[1], BLOCK):
            block = rows[:, at : at + BLOCK].to(torch.float32)
            sums.add_(torch.bmm(block.transpose(1, 2), block).to(sums.device))


def _near_zero(rows: Tensor, sums: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(rows less their mean as float32 has it, their mean, the mean of what is left), the means float64 where sums are kept."""
    shift = rows.to(torch.float32).mean(dim=0)
    near = torch.sub(rows.to(torch.float32), shift)
    rest = torch.zeros(near.shape[1], dtype=torch.float64, device=sums)
    for at in range(0, len(near), BLOCK):
        rest.add_(near[at : at + BLOCK].sum(dim=0).to(sums))
    rest.div_(len(near))
    return near, shift.to(sums).double().add_(rest), rest


@contextmanager
def _no_tf32() -> Generator[None]:
    """Products of float32 in float32 inside the block."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
