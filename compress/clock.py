"""Clocks, memory and statistics of a benchmark: nothing here knows what a model is.

A duration is taken with the device idle before and after it. Competitors take turns (A B C A B C …), so that drift of the
machine meets all of them alike, and are compared round by round.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEAST_ROUNDS = 6  # the median of fewer has no 95 % interval: 2 · 0.5^5 > 0.05
# Copies of one model differ by up to this much, round after round, by where their weights happen to lie in memory: no number
# of rounds shows it as noise.
RESOLUTION = 0.02
STABLE_SPREAD = 0.1  # warm-up ends when recent runs lie within this fraction of their median
STABLE_RUNS = 3

Result = TypeVar("Result")


def present_devices() -> list[str]:
    """Devices torch can use here, the CPU first: of cpu, cuda, mps."""
    import torch

    found = ["cpu"]
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def choose_devices(asked: Sequence[str] | None) -> list[str]:
    """`asked` as it is, or all that are present for None. Raises ValueError naming those that are."""
    present = present_devices()
    for name in asked or ():
        if name not in present:
            raise ValueError(f"no device {name!r} here; present: {', '.join(present)}. Leave devices out to use all of them")
    return present if asked is None else list(dict.fromkeys(asked))


def synchronize(device: str) -> None:
    """Wait until the device has finished everything it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
    elif device == "mps":
        import torch

        torch.mps.synchronize()


def timed(device: str, run: Callable[[], Result]) -> tuple[float, Result]:
    """(milliseconds, result) of one call: on CUDA between two events, elsewhere by the host's clock, synchronised."""
    synchronize(device)
    if device == "cuda":
        import torch

        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        result = run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end), result
    begin = time.perf_counter()
    result = run()
    synchronize(device)
    return (time.perf_counter() - begin) * 1e3, result


def warm_up(run: Callable[[], float], most: int) -> int:
    """Call `run` until its last `STABLE_RUNS` values lie close together, at most `most` times; returns how often."""
    recent: list[float] = []
    for count in range(1, most + 1):
        recent = [*recent, run()][-STABLE_RUNS:]
        middle = sorted(recent)[len(recent) // 2]
        if len(recent) == STABLE_RUNS and max(recent) - min(recent) <= STABLE_SPREAD * middle:
            return count
    return most


def interleave(
    runs: Mapping[str, Callable[[], Result]], rounds: int, tick: Callable[[], None] = lambda: None
) -> dict[str, list[Result]]:
    """Each run once a round, in the order given, `rounds` times: A B C A B C …; {name: results by round}."""
    out: dict[str, list[Result]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            out[name].append(run())
            tick()
    return out


def summary_ms(samples: Sequence[float]) -> dict[str, Any]:
    """Mean, median and tail of durations in milliseconds, with the durations themselves."""
    values = np.asarray(samples, dtype=np.float64)
    p50, p95, p99 = (float(v) for v in np.percentile(values, [50, 95, 99]))
    return {
        "mean_ms": float(values.mean()),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "min_ms": float(values.min()),
        "samples_ms": [round(float(v), 6) for v in values],
    }


@dataclass(frozen=True)
class Speedup:
    """Median of the paired ratios baseline time / own time, and its 95 % interval: above 1 is faster."""

    ratio: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """faster, slower; no difference where the interval comes within `RESOLUTION` of 1; too few runs without an interval."""
        if self.low is None or self.high is None:
            return "too few runs"
        if self.low > 1 + RESOLUTION:
            return "faster"
        return "slower" if self.high < 1 / (1 + RESOLUTION) else "no difference"

    def to_json(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "low": self.low, "high": self.high, "verdict": self.verdict}


def paired_speedup(times: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Speedup:
    """baseline/times round by round: their median with a 95 % percentile-bootstrap interval over the rounds.

    The pairs of one round share the machine's state, so drift cancels in the ratio; the median disregards the rounds in
    which another program took the processor. Raises ValueError for unpaired lists.
    """
    if len(times) != len(baseline) or len(times) == 0:
        raise ValueError(f"{len(times)} times and {len(baseline)} of the baseline; give one pair per round")
    ratios: NDArray[np.float64] = np.asarray(baseline, dtype=np.float64) / np.asarray(times, dtype=np.float64)
    if len(ratios) < LEAST_ROUNDS:
        return Speedup(float(np.median(ratios)), None, None)
    picks = np.random.default_rng(seed).integers(0, len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return Speedup(float(np.median(ratios)), float(low), float(high))


def resident_mib() -> tuple[float, float]:
    """(now, highest so far) of this process's resident memory.

    On Linux from /proc: ru_maxrss is inherited through exec, and would hold the parent's peak.
    """
    if sys.platform == "linux":
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now, peak = (int(fields[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
        return now, peak
    import resource

    import psutil

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return psutil.Process(os.getpid()).memory_info().rss / 2**20, peak


def device_mib(device: str) -> tuple[float, float] | None:
    """(now, highest so far) of the allocator of cuda or mps; None for the CPU, which has none."""
    import torch

    if device == "cuda":
        return torch.cuda.memory_allocated() / 2**20, torch.cuda.max_memory_allocated() / 2**20
    if device == "mps":  # keeps no peak; what the driver holds is what the allocator ever needed at once
        return torch.mps.current_allocated_memory() / 2**20, torch.mps.driver_allocated_memory() / 2**20
    return None
