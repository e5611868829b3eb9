"""Rank rules: what each form costs, and how a recipe's `rank:` becomes one rank per matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

Form = Literal["plain", "pivoted"]


def break_even(d_out: int, d_in: int) -> float:
    """Rank at which the plain form stores as many numbers as the dense matrix; above it, low rank costs more than it saves.

    >>> break_even(64, 64), break_even(4096, 1024)
    (32.0, 819.2)
    """
    return d_out * d_in / (d_out + d_in)


def parameters(rank: int, d_out: int, d_in: int, form: Form = "plain") -> int:
    """Numbers stored for one matrix at `rank`, biases aside.

    >>> parameters(10, 64, 32), parameters(10, 64, 32, "pivoted"), parameters(32, 64, 32, "pivoted") == 64 * 32
    (960, 860, True)
    """
    return rank * (d_out + d_in - (rank if form == "pivoted" else 0))


def rank_at(keep: float, d_out: int, d_in: int, form: Form = "plain") -> int:
    """Largest rank whose storage is at most `keep` of the dense matrix's, at least 1.

    >>> rank_at(0.5, 64, 64), rank_at(0.5, 64, 64, "pivoted"), rank_at(1.0, 64, 32, "pivoted")
    (16, 18, 32)
    """
    budget = keep * d_out * d_in + 1e-6  # a whole number of ranks must not lose one of them to rounding
    total = d_out + d_in
    # Pivoted: smaller root of r² − (d_out + d_in) r + budget = 0, whose discriminant rounds below 0 where keep is 1.
    root = budget / total if form == "plain" else (total - math.sqrt(max(total * total - 4 * budget, 0.0))) / 2
    # The root is off by a rank where its two terms cancel: what is stored decides.
    rank = max(1, min(int(root), d_out, d_in))
    while rank < min(d_out, d_in) and parameters(rank + 1, d_out, d_in, form) <= budget:
        rank += 1
    while rank > 1 and parameters(rank, d_out, d_in, form) > budget:
        rank -= 1
    return rank


def rank_explaining(spectrum: Tensor, threshold: float) -> int:
    """Fewest leading components whose share of the sum of the spectrum (k,) reaches `threshold` in [0, 1], at least 1.

    >>> import torch
    >>> [rank_explaining(torch.tensor([5.0, 3.0, 1.0, 1.0]), threshold) for threshold in (0.5, 0.8, 0.81, 1.0)]
    [1, 2, 3, 4]
    """
    # The slack lets a threshold of 1 be reached where rounding leaves the last share just below it.
    share = spectrum.cumsum(0) / spectrum.sum().clamp_min(1e-300)
    return min(int((share < threshold - 1e-12).sum()) + 1, spectrum.shape[0])


def allocate(
    spectra: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], form: Form, budget: float
) -> dict[str, int | None]:
    """One rank per module (None: dense) that together minimise the summed discarded spectrum within `budget` of all parameters.

    Lagrangian: for a price per parameter each module takes its cheapest point of error + price·cost over all ranks and dense;
    the price is bisected to the budget, and what is left over is spent on the best remaining gains. Spectra must share one
    scale, which the loss-weighted metric gives. Rank 1 everywhere where the budget is below even that.

    What the price finds is optimal for what it costs (Everett 1963, "Generalized Lagrange multiplier method"), so the result
    is the optimum wherever it spends the whole budget; elsewhere it is worse by less than one step of one module, between
    neighbouring points of the convex hull of its (cost, error) curve.

    >>> import torch
    >>> spectra = {"steep": torch.tensor([9.0, 4.0, 0.0, 0.0]), "flat": torch.tensor([1.0, 1.0, 1.0, 1.0])}
    >>> allocate(spectra, {"steep": (8, 8), "flat": (8, 8)}, "plain", budget=0.375)
    {'steep': 2, 'flat': 1}
    """
    curves = {name: _curve(spectrum, *shapes[name], form) for name, spectrum in spectra.items()}
    limit = budget * sum(d_out * d_in for d_out, d_in in shapes.values())
    positive = [float(s.sum()) for s in spectra.values() if float(s.sum()) > 0]
    low, high = 0.0, sum(positive) + 1.0  # at `high` per parameter nothing is worth more than rank 1
    for _ in range(200):  # geometric: prices of real layers spread over many powers of ten
        # No geometric mean with 0: until a price was too low, each try is 1e-30 of the highest.
        price = math.sqrt(low * high) if low > 0 else high * 1e-30 if high > 1e-280 else 0.0
        cost = sum(int(c[int((e + price * c).argmin())]) for c, e in curves.values())
        # Dearer parameters are bought less: the cost falls with the price, and `high` is the side that fits the budget.
        low, high = (price, high) if cost > limit else (low, price)
        if low > 0 and high / low < 1 + 1e-12:
            break
    chosen = {name: int((e + high * c).argmin()) for name, (c, e) in curves.items()}
    # Costs are whole ranks, so something is left over: spend it where a parameter buys most, until nothing more fits.
    spare = limit - sum(float(curves[name][0][i]) for name, i in chosen.items())
    while True:
        best, gain = None, 0.0
        for name, (cost, error) in curves.items():
            at = chosen[name]
            for up in range(at + 1, len(cost)):
                extra = float(cost[up] - cost[at])
                if extra > spare:
                    continue
                rate = float(error[at] - error[up]) / max(extra, 1.0)
                if rate > gain:
                    best, gain = (name, up, extra), rate
        if best is None:
            break
        chosen[best[0]], spare = best[1], spare - best[2]
    # The last point of every curve is the dense matrix.
    return {name: None if i == len(curves[name][0]) - 1 else i + 1 for name, i in chosen.items()}


def _curve(spectrum: Tensor, d_out: int, d_in: int, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """(cost, error) of rank 1, 2, … as far as it costs less than dense, then dense with error 0."""
    most = min(spectrum.shape[0], d_out, d_in)
    # A rank that costs what dense costs is never worth it: dense has no error.
    ranks = [r for r in range(1, most + 1) if parameters(r, d_out, d_in, form) < d_out * d_in]
    # tail[r] = Σ spectrum[r:], the squared error of rank r.
    tail = spectrum.flip(0).cumsum(0).flip(0).numpy()
    error = [float(tail[r]) if r < len(tail) else 0.0 for r in ranks]
    return np.array([*(parameters(r, d_out, d_in, form) for r in ranks), d_out * d_in], float), np.array([*error, 0.0])
