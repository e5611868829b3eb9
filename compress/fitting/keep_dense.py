"""The speed verdict: whether a factored linear is really faster than the dense one it replaces, timed on the target device."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress import kinds
from compress.checkpoint.files import read_json, write_json
from compress.clock import interleave, present_devices, timed
from compress.methods.base import Replacement
from compress.plan import ModuleSpec

TOKENS = {"decode": 1, "prefill": 256}
ROUNDS, REPEATS = 30, 10
MARGIN = 1.03  # a factored linear within 3 % of dense counts as no slower


class Verdicts:
    """Ratios factored / dense by shape, kept in a file so that a resumed run decides as the first one did."""

    def __init__(self, file: Path, device: str, dtype: torch.dtype) -> None:
        self.file, self.device, self.dtype = file, device, dtype
        self.known: dict[str, dict[str, float]] = read_json(file) or {}

    def keep_dense(self, replacement: Replacement) -> Replacement:
        """The replacement with its measured ratios in the report, or none at all where it is slower in decode or in prefill.

        Only single linears are judged; groups that share a basis, MLPs and pruned channels pass as they are.
        """
        # One spec: a single linear. None: a unit that is dense already.
        (spec, *others) = replacement.specs or (None,)
        if spec is None or others or kinds.of(spec).dense_twin() is None:
            return replacement
        ratios = self.ratios(spec)
        row: dict[str, Any] = {**replacement.report[0], "time_ratio": ratios}
        if max(ratios.values()) <= MARGIN:
            return replace(replacement, report=(row,))
        row |= {
            "kind": "dense",
            "rank": None,
            "parameters": row["parameters_before"],
            "relative_error": 0.0,
            "note": "faster dense",
        }
        return Replacement((), {}, (), (row,))

    def ratios(self, spec: ModuleSpec) -> dict[str, float]:
        """{"decode", "prefill"}: median time over the dense linear's, interleaved, one and 256 tokens."""
        # By shape, not by name: equal linears of all layers are timed once.
        shape = f"{spec.options['out_features']}x{spec.options['in_features']}"
        key = f"{spec.kind} {shape} rank {spec.options['rank']} {self.device}"
        if key not in self.known:
            self.known[key] = {name: self._ratio(spec, tokens) for name, tokens in TOKENS.items()}
            write_json(self.file, self.known)
        return self.known[key]

    @torch.no_grad()
    def _ratio(self, spec: ModuleSpec, tokens: int) -> float:
        kind = kinds.of(spec)
        dense = kind.dense_twin()
        assert dense is not None  # only such kinds are timed
        modules = [kind.build(), dense]
        for module in modules:
            for parameter in module.parameters():
                # Uninitialised memory may hold NaN or denormals, which take other times.
                parameter.normal_(std=0.02)
            module.to(self.device, self.dtype)
        x = torch.randn(1, tokens, dense.in_features, device=self.device, dtype=self.dtype)
        runs = {
            name: partial(self._milliseconds, module, x) for name, module in zip(("factored", "dense"), modules, strict=True)
        }
        times = interleave(runs, ROUNDS)
        # The first fifth warms up caches and clocks, and does not count.
        factored, plain = (statistics.median(seen[ROUNDS // 5 :]) for seen in times.values())
        return round(factored / plain, 3)

    def _milliseconds(self, module: nn.Module, x: torch.Tensor) -> float:
        def run() -> None:
            for _ in range(REPEATS):
                module(x)

        return timed(self.device, run)[0]


def judge(replacements: Sequence[Replacement], file: Path, device: str, dtype: torch.dtype) -> list[Replacement]:
    """Every replacement that is no slower than dense on `device`. Raises ValueError for a device that is not there."""
    if device.partition(":")[0] not in (present := present_devices()):
        raise ValueError(f"keep_dense_if_slower: device {device!r} is not here; there are {', '.join(present)}")
    verdicts = Verdicts(file, device, dtype)
    return [verdicts.keep_dense(replacement) for replacement in replacements]
