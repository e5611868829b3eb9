"""What executes a model folder in a benchmark: torch eager, torch.compile, onnxruntime, onnxruntime with int8 weights.

A runner takes token ids (batch, n) as numpy integers and does three things: a forward pass with all logits and a filled
cache, the first token of a generation, and the next tokens with the cache. torch is imported only by the runners that need
it, so that the cold start of an ONNX model is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from compress.checkpoint.files import read_json
from compress.reading import json_text

Runtime = Literal["eager", "compile", "onnx", "ort-int8"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
Ids = NDArray[np.int64]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_INT8_FILE = "model_int8.onnx"


@dataclass
class Generation:
    """A generation under way: the newest token of each row, (batch, 1), on the device, and the live cache."""

    newest: Any
    cache: Any


class Runner(Protocol):
    """One loaded model."""

    device: str

    def forward(self, ids: Ids) -> Any:
        """All logits of a prompt, with its cache filled; what comes back is the cache."""
        ...

    def start(self, ids: Ids, steps: int) -> Generation:
        """Read a prompt and have its next token on the host; `steps` more will follow."""
        ...

    def step(self, generation: Generation) -> None:
        """One more greedy token per row."""
        ...

    def scorer(self) -> Callable[..., Any]:
        """The model as `compress.evaluating` takes it."""
        ...


def check_runtimes(names: tuple[str, ...] | list[str]) -> list[Runtime]:
    """The runtimes in the order of `RUNTIMES`. Raises ValueError for one that is not there."""
    for name in names:
        if name not in RUNTIMES:
            raise ValueError(f"unknown runtime {name!r}; allowed: {', '.join(RUNTIMES)}")
    return [runtime for runtime in RUNTIMES if runtime in names]


def obstacle(runtime: Runtime, device: str) -> str | None:
    """Why a runtime cannot work on a device here; None where it can."""
    if runtime in ("eager", "compile"):
        return None
    if runtime == "ort-int8" and device != "cpu":
        return "int8 kernels are for the cpu"
    if device not in _PROVIDERS:
        return f"onnxruntime runs on {' and '.join(_PROVIDERS)}"
    from exporters.onnx.runtime import available_providers

    if _PROVIDERS[device] not in available_providers():
        return f"this onnxruntime has no {_PROVIDERS[device]}; it comes with onnxruntime-gpu"
    return None


def resolve_dtype(folder: Path, runtime: Runtime, device: str, dtype: str) -> str:
    """The dtype a model runs in: the one asked for, or for "auto" float32 on the CPU and the stored one elsewhere."""
    if runtime == "ort-int8":
        return "float32"
    if dtype != "auto":
        return dtype
    config = json_text.read(folder / "config.json")
    stored = config.get("dtype") or config.get("torch_dtype") or "float32"
    return "float32" if device == "cpu" else str(stored)


def open_runner(folder: Path, runtime: Runtime, device: str, dtype: str, threads: int) -> Runner:
    """Load a model. `folder` is a model folder for torch, an exported one for ONNX; `threads` are the CPU's."""
    if runtime in ("onnx", "ort-int8"):
        from exporters.onnx.runtime import MODEL_FILE, OnnxModel

        file = MODEL_FILE if runtime == "onnx" else _INT8_FILE
        return OnnxRunner(OnnxModel(folder, _PROVIDERS[device], threads, file=file), device)
    import torch

    from compress.loading.quantizer import from_pretrained

    torch.set_num_threads(threads)
    model = from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)
    return EagerRunner(model, device) if runtime == "eager" else CompiledRunner(model, device)


class EagerRunner:
    """transformers' own code, with a cache that grows."""

    def __init__(self, model: Any, device: str) -> None:
        self.model, self.device = model, device

    def forward(self, ids: Ids) -> Any:
        return self._call(self._tensor(ids), None, use_cache=True).past_key_values

    def start(self, ids: Ids, steps: int) -> Generation:
        out = self._call(self._tensor(ids), self._cache(ids.shape[1] + steps), use_cache=True, logits_to_keep=1)
        newest = _best(out.logits)
        newest.cpu()
        return Generation(newest, out.past_key_values)

    def step(self, generation: Generation) -> None:
        generation.newest = _best(self._call(generation.newest, generation.cache, use_cache=True).logits)

    def scorer(self) -> Callable[..., Any]:
        return self.model

    def _cache(self, length: int) -> Any:
        return None

    def _tensor(self, ids: Ids) -> Any:
        import torch

        return torch.from_numpy(ids).to(self.device)

    def _call(self, ids: Any, cache: Any, **options: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(input_ids=ids, past_key_values=cache, **options)


class CompiledRunner(EagerRunner):
    """torch.compile, with a cache of fixed size: a growing one would be compiled again at every step."""

    def __init__(self, model: Any, device: str) -> None:
        import torch

        super().__init__(model, device)
        torch._dynamo.config.recompile_limit = 64  # one graph per shape that is measured
        self._compiled = torch.compile(model.forward)

    def forward(self, ids: Ids) -> Any:
        return self._call(self._tensor(ids), self._cache(ids.shape[1]), use_cache=True).past_key_values

    def _cache(self, length: int) -> Any:
        from transformers import StaticCache

        return StaticCache(config=self.model.config, max_cache_len=length)

    def _call(self, ids: Any, cache: Any, **options: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self._compiled(input_ids=ids, past_key_values=cache, **options)


class OnnxRunner:
    """onnxruntime on an exported graph; the cache goes in and out at every step."""

    def __init__(self, model: Any, device: str) -> None:
        self.model, self.device = model, device

    def forward(self, ids: Ids) -> Any:
        return self.model.forward(ids)[1]

    def start(self, ids: Ids, steps: int) -> Generation:
        logits, cache = self.model.forward(ids)
        return Generation(_best_numpy(logits), cache)

    def step(self, generation: Generation) -> None:
        logits, generation.cache = self.model.forward(generation.newest, past=generation.cache)
        generation.newest = _best_numpy(logits)

    def scorer(self) -> Callable[..., Any]:
        return lambda ids: self.model.forward(ids.numpy())[0]


def _best(logits: Any) -> Any:
    return logits[:, -1].argmax(dim=-1, keepdim=True)


def _best_numpy(logits: NDArray[np.float32]) -> Ids:
    return logits[:, -1].argmax(axis=-1, keepdims=True)


def exported(folder: Path, work: Path, dtype: str, int8: bool) -> Path:
    """The folder of a model's ONNX graph: the one beside the checkpoint if it is up to date, else one written into `work`."""
    from exporters.onnx.graph import export_onnx, source_fingerprint

    fingerprint = source_fingerprint(folder)
    beside = folder / "onnx"
    target = work / "onnx" / f"{folder.name}.{dtype}.{fingerprint[:12]}"
    for candidate in (beside, target):
        if _serves(candidate, fingerprint, dtype, int8):
            return candidate
    # Agreement with torch needs no check here: the perplexity of every runtime is measured.
    export_onnx(folder, target, dtype=dtype, quantize="int8" if int8 else None, verify=False)  # pyright: ignore[reportArgumentType]
    return target


def _serves(candidate: Path, fingerprint: str, dtype: str, int8: bool) -> bool:
    """Whether an exported folder holds what is needed, and is of this model as it is now."""
    report = read_json(candidate / "export.json") or {}
    same = report.get("dtype") == dtype and report.get("source") == fingerprint
    return same and (not int8 or (candidate / _INT8_FILE).is_file())


def exported_bytes(folder: Path, runtime: Runtime) -> int:
    """Bytes of the graph a runtime reads, with its external data."""
    name = _INT8_FILE if runtime == "ort-int8" else "model.onnx"
    return sum(file.stat().st_size for file in folder.iterdir() if file.name in (name, f"{name}.data"))
