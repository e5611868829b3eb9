"""Times of several runners side by side on one device: prefill, time to first token, decoding with the live cache.

The runners take turns round by round; every time is kept, and compared with the baseline's of the same round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from compress.clock import interleave, paired_speedup, summary_ms, timed, warm_up
from compress.measuring.runtimes import Ids, Runner


@dataclass(frozen=True)
class Workload:
    """What is timed, in tokens, and how often."""

    prefill_length: int = 256
    batch_sizes: tuple[int, ...] = (1,)
    contexts: tuple[int, ...] = (256,)
    steps: int = 16
    repeats: int = 20
    warmup: int = 10  # at most; it ends earlier when the times are stable
    seed: int = 0  # of the bootstrap

    def __post_init__(self) -> None:
        for name in ("prefill_length", "steps", "repeats", "warmup"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more")
        for name in ("batch_sizes", "contexts"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give one or more positive numbers")

    @property
    def longest(self) -> int:
        """The most positions a model must have."""
        return max(self.prefill_length, max(self.contexts) + self.steps)

    def rounds(self) -> int:
        return self.repeats * (1 + len(self.batch_sizes) * len(self.contexts))


def time_side_by_side(
    runners: Mapping[str, Runner],
    baselines: Mapping[str, str],
    tokens: Mapping[str, Sequence[int]],
    work: Workload,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """{label: {"prefill": …, "decode": […]}} of runners that share a device.

    `baselines` names the runner each is compared with, `tokens` the text each reads, repeated where it is too short.
    "speedup" is the baseline's time over the runner's own, above 1 where the runner is faster.
    """
    prompt = {label: _prompts(tokens[label], 1, work.prefill_length) for label in runners}
    samples = _rounds({label: partial(_forward, runner, prompt[label]) for label, runner in runners.items()}, work, tick)
    out: dict[str, dict[str, Any]] = {}
    for label, times in samples.items():
        summary = {"length": work.prefill_length, **summary_ms(times)}
        summary["tokens_per_s"] = work.prefill_length / summary["p50_ms"] * 1e3
        summary["speedup"] = _speedup(samples, label, baselines, work)
        out[label] = {"prefill": summary, "decode": []}
    for batch in work.batch_sizes:
        for context in work.contexts:
            for label, row in _decode(runners, baselines, tokens, batch=batch, context=context, work=work, tick=tick).items():
                out[label]["decode"].append(row)
    return out


def _decode(
    runners: Mapping[str, Runner],
    baselines: Mapping[str, str],
    tokens: Mapping[str, Sequence[int]],
    *,
    batch: int,
    context: int,
    work: Workload,
    tick: Callable[[], None],
) -> dict[str, dict[str, Any]]:
    """Generation of `steps` tokens after the first one, per row of the batch, after a prompt of `context` tokens."""
    firsts: dict[str, list[float]] = {label: [] for label in runners}

    def generate(label: str, runner: Runner) -> float:
        ids = _prompts(tokens[label], batch, context)
        first_ms, generation = timed(runner.device, lambda: runner.start(ids, work.steps))
        firsts[label].append(first_ms)

        def rest() -> None:
            for _ in range(work.steps):
                runner.step(generation)

        return timed(runner.device, rest)[0] / work.steps

    steps = _rounds({label: partial(generate, label, runner) for label, runner in runners.items()}, work, tick)
    # generations of the warm-up are in front of those that count
    counted = {label: times[-work.repeats :] for label, times in firsts.items()}
    out = {}
    for label, times in steps.items():
        rates = [batch / ms * 1e3 for ms in times]
        out[label] = {
            "batch": batch,
            "context": context,
            "steps": work.steps,
            "tokens_per_s": median(rates),
            "step": summary_ms(times),
            "speedup": _speedup(steps, label, baselines, work),
            "first_token": {**summary_ms(counted[label]), "speedup": _speedup(counted, label, baselines, work)},
        }
    return out


def _rounds(runs: Mapping[str, Callable[[], float]], work: Workload, tick: Callable[[], None]) -> dict[str, list[float]]:
    for run in runs.values():
        warm_up(run, work.warmup)
    return interleave(runs, work.repeats, tick)


def _forward(runner: Runner, ids: Ids) -> float:
    return timed(runner.device, lambda: runner.forward(ids))[0]


def _speedup(samples: Mapping[str, Sequence[float]], label: str, baselines: Mapping[str, str], work: Workload) -> Any:
    """None for a baseline itself."""
    against = baselines[label]
    if against == label:
        return None
    return paired_speedup(samples[label], samples[against], work.seed).to_json()


def _prompts(tokens: Sequence[int], batch: int, length: int) -> Ids:
    return np.resize(np.asarray(tokens, dtype=np.int64), (batch, length))
