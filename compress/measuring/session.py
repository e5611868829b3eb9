"""One benchmark under way: blocks of runners, one per runtime and device, in which every variant has its turn."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compress import data
from compress.checkpoint.config import load_config
from compress.evaluating.cost import cache_bytes_per_token, weight_bytes
from compress.measuring import outputs
from compress.measuring.cold_start import ColdStart, cold
from compress.measuring.latency import Workload, time_side_by_side
from compress.measuring.outputs import Remembered, Text
from compress.measuring.runtimes import (
    EagerRunner,
    Runner,
    Runtime,
    exported,
    exported_bytes,
    obstacle,
    open_runner,
    resolve_dtype,
)
from compress.measuring.variants import Variant
from compress.progress import Progress

PROMPT_TOKENS, CONTINUATION_TOKENS = 32, 48


@dataclass
class Blocks:
    """Fills `rows`, `generation` and `skipped` as the blocks are measured."""

    competitors: Sequence[Variant]
    runtimes: Sequence[Runtime]
    devices: Sequence[str]
    load: Workload
    threads: int
    dtype: str
    work: Path
    progress: Progress
    texts: dict[str, list[Text]] = field(default_factory=dict)  # by the label of the baseline whose tokenizer cut them
    rows: list[dict[str, Any]] = field(default_factory=list)
    generation: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the label of a baseline
    skipped: list[dict[str, str]] = field(default_factory=list)
    _prompts: dict[str, list[int]] = field(default_factory=dict)
    _references: dict[str, Remembered] = field(default_factory=dict)
    _judged: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)  # by label and kind of runtime
    _jobs: list[ColdStart] = field(default_factory=list)  # one per row

    @property
    def baselines(self) -> dict[str, str]:
        """The label each variant is compared with."""
        return {variant.label: variant.baseline for variant in self.competitors}

    @property
    def _folders(self) -> dict[str, Path]:
        return {variant.label: variant.folder for variant in self.competitors}

    def read_texts(self, sources: Mapping[str, data.TextSource], prompt: str | None) -> None:
        """Tokenize the texts for each baseline.

        Raises ValueError where something is longer than a model's positions, or beyond its vocabulary.
        """
        for label in dict.fromkeys(self.baselines.values()):
            folder = self._folders[label]
            config = load_config(folder)
            longest = data.positions(config)
            if longest is not None and self.load.longest > longest:
                raise ValueError(
                    f"{label} has {longest} positions; the prefill, and each context with its steps, must fit: "
                    f"{self.load.longest} given"
                )
            tokenizer = data.load_tokenizer(str(folder))
            self.texts[label] = outputs.read_texts(sources, tokenizer, config)
            most = max(1, min(PROMPT_TOKENS, (longest or PROMPT_TOKENS + CONTINUATION_TOKENS) - CONTINUATION_TOKENS))
            self._prompts[label] = outputs.prompt_tokens(prompt, self.texts[label], tokenizer, most)

    def measure(self) -> None:
        """Every block, then what was judged is written into every row. Raises RuntimeError where no block could run."""
        threads = torch.get_num_threads()
        try:
            for device in self._fastest_first:
                for runtime in self.runtimes:
                    self._block(runtime, device)
        finally:
            torch.set_num_threads(threads)
        if not self.rows:
            reasons = "; ".join(f"{s['runtime']} on {s['device']}: {s['reason']}" for s in self.skipped)
            raise RuntimeError(f"nothing could be measured: {reasons}")
        for row in self.rows:
            row["quality"] = self._judged[row["label"], _family(row["runtime"])]

    def measure_cold(self, starts: int) -> None:
        """Cold start and memory of every row, in processes of their own; one that fails costs its own numbers only."""
        tick = self.progress("cold starts", len(self.rows))
        for row, job in zip(self.rows, self._jobs, strict=True):
            try:
                row["cold"] = cold(job, starts)
            except RuntimeError as error:
                reason = f"cold start of {row['label']}: {error}"
                self.skipped.append({"runtime": job.runtime, "device": job.device, "reason": reason})
            tick()

    @property
    def _fastest_first(self) -> list[str]:
        """The devices, so that outputs are judged on the fastest that a runtime works on."""
        return [device for device in ("cuda", "mps", "cpu") if device in self.devices]

    def _block(self, runtime: Runtime, device: str) -> None:
        """One runtime on one device; where that cannot be, `skipped` says why."""
        reason = obstacle(runtime, device)
        if reason is None:
            try:
                self._measure_block(runtime, device)
            except Exception as error:  # torch.compile looks for its compiler only when it runs
                if runtime == "eager":  # a model that torch does not run is a mistake, not a missing runtime
                    raise
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if reason is not None:
            self.skipped.append({"runtime": runtime, "device": device, "reason": reason})
        # What the block had loaded is gone by now, an error's frames too.
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()

    def _measure_block(self, runtime: Runtime, device: str) -> None:
        jobs, runners = self._open(runtime, device)
        texts = {label: self.texts[base][0].tokens.flatten().tolist() for label, base in self.baselines.items()}
        tick = self.progress(f"{runtime} on {device}", self.load.rounds() * len(runners))
        times = time_side_by_side(runners, self.baselines, texts, self.load, tick)
        self._judge(runtime, device, runners, jobs)
        for variant in self.competitors:
            job = jobs[variant.label]
            self._jobs.append(job)
            self.rows.append(
                {
                    "label": variant.label,
                    "kind": variant.kind,
                    "baseline": variant.baseline,
                    "runtime": runtime,
                    "device": device,
                    "dtype": job.dtype,
                    "bytes_on_disk": _bytes_on_disk(job),
                    "cache_bytes_per_token": _cache_growth(runners[variant.label]),
                    **times[variant.label],
                }
            )

    def _open(self, runtime: Runtime, device: str) -> tuple[dict[str, ColdStart], dict[str, Runner]]:
        onnx = _family(runtime) != "torch"
        tick = self.progress("export onnx" if onnx else f"load {runtime}", len(self.competitors))
        jobs, runners = {}, {}
        for label, folder in self._folders.items():
            dtype = resolve_dtype(folder, runtime, device, self.dtype)
            if onnx:
                int8 = "ort-int8" in self.runtimes and dtype == "float32"  # it is made from a float32 graph only
                folder = exported(folder, self.work, dtype, int8=int8)  # noqa: PLW2901
            jobs[label] = ColdStart(str(folder), runtime, device, dtype, self.threads, self.load.prefill_length)
            runners[label] = open_runner(folder, runtime, device, dtype, self.threads)
            tick()
        return jobs, runners

    def _judge(self, runtime: Runtime, device: str, runners: Mapping[str, Runner], jobs: Mapping[str, ColdStart]) -> None:
        """Perplexity, distance from the baseline and generated text, in the first block of a kind of runtime that works."""
        if any(family == _family(runtime) for _, family in self._judged):
            return
        tick = self.progress(f"judge {runtime}", sum(len(self.texts[base]) for base in self.baselines.values()))
        judged = {}
        for label, base in self.baselines.items():
            reference = self._reference(base, runners if _family(runtime) == "torch" else {})
            scores = outputs.score(runners[label].scorer(), reference, self.texts[base], tick)
            by = "eager" if _family(runtime) == "torch" else runtime
            measured = {"runtime": by, "device": device, "dtype": jobs[label].dtype, "texts": scores}
            judged[label, _family(runtime)] = measured
        self.generation = self.generation or self._generated(runners)
        self._judged |= judged

    def _reference(self, base: str, runners: Mapping[str, Runner]) -> Remembered:
        """The baseline in torch, eager: what every runtime's outputs are compared with."""
        if base not in self._references:
            device = self._fastest_first[0]
            folder = self._folders[base]
            runner = runners.get(base) or open_runner(
                folder, "eager", device, resolve_dtype(folder, "eager", device, self.dtype), self.threads
            )
            self._references[base] = Remembered(runner.scorer())
        return self._references[base]

    def _generated(self, runners: Mapping[str, Runner]) -> dict[str, dict[str, Any]]:
        out = {}
        for base, prompt in self._prompts.items():
            tokenizer = data.load_tokenizer(str(self._folders[base]))
            texts = {
                label: tokenizer.decode(outputs.greedy(runners[label], prompt, CONTINUATION_TOKENS))
                for label, against in self.baselines.items()
                if against == base
            }
            out[base] = {"prompt": tokenizer.decode(prompt), "tokens": CONTINUATION_TOKENS, "continuations": texts}
        return out


def _family(runtime: str) -> str:
    """Runtimes of one family compute the same numbers."""
    return "torch" if runtime in ("eager", "compile") else runtime


def _bytes_on_disk(job: ColdStart) -> int:
    torch_model = _family(job.runtime) == "torch"
    return weight_bytes(Path(job.folder)) if torch_model else exported_bytes(Path(job.folder), job.runtime)


def _cache_growth(runner: Runner) -> int:
    """Bytes per token of a live cache that grows; a compiled runner's is allocated whole."""
    growing = EagerRunner(runner.model, runner.device) if isinstance(runner, EagerRunner) else runner
    fill: Callable[[Any], object] = lambda ids: growing.forward(ids.numpy())  # noqa: E731
    return cache_bytes_per_token(fill)
