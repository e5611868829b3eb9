"""An exported folder in onnxruntime: logits with a KV cache, and greedy generation.

>>> model = OnnxModel("exported")                                    # doctest: +SKIP
>>> logits, cache = model.forward([[464, 2068, 7586]])               # doctest: +SKIP
>>> logits, cache = model.forward([[21831]], past=cache)             # doctest: +SKIP
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

MODEL_FILE = "model.onnx"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# What may run a graph here. TensorRT is left out (it compiles an engine per shape), Azure sends the graph elsewhere.
_LOCAL = (CPU, CUDA, "CoreMLExecutionProvider", "DmlExecutionProvider")
_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16; numpy has no such type

Cache: TypeAlias = list[Any]  # one array per past_key_values.* input, in the session's order; on the device of the provider


def available_providers() -> list[str]:
    """The execution providers of this machine that run a graph locally, CPU first."""
    import onnxruntime

    present = onnxruntime.get_available_providers()
    return [name for name in _LOCAL if name in present]


class OnnxModel:
    """A causal language model with its cache in and out, in the optimum naming.

    `provider` is an onnxruntime execution provider, `threads` the number of intra-op threads (None: onnxruntime's choice).
    Raises FileNotFoundError where `folder` has no such file, ValueError for a provider that is not here.
    """

    def __init__(
        self, folder: str | os.PathLike[str], provider: str = CPU, threads: int | None = None, *, file: str = MODEL_FILE
    ) -> None:
        import onnxruntime

        self.folder, self.provider = Path(folder), provider
        path = self.folder / file
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder}: no {file}; write one with `compress export DIR --onnx`")
        if provider not in available_providers():
            raise ValueError(
                f"onnxruntime has no {provider!r} here; there is {', '.join(available_providers())}. "
                "Another one comes with its own build of onnxruntime, such as onnxruntime-gpu"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; the warnings speak of initializers that constant folding made unused
        if threads is not None:
            options.intra_op_num_threads = threads
        # A float32 graph is meant to be float32: CUDA would round products to TF32 (10 bits) otherwise.
        chosen: Any = (CUDA, {"use_tf32": "0"}) if provider == CUDA else provider
        # The CPU runs what another provider has no kernel for.
        self.session = onnxruntime.InferenceSession(path, options, providers=[chosen] if provider == CPU else [chosen, CPU])
        if provider not in self.session.get_providers():  # onnxruntime falls back to the CPU with a warning only
            raise ValueError(f"onnxruntime could not start {provider!r} (a missing library?); use {CPU!r}")
        inputs = self.session.get_inputs()
        self.takes_positions = any(i.name == "position_ids" for i in inputs)
        self._cache_inputs = [i for i in inputs if i.name.startswith("past_key_values.")]
        self._cache_outputs = [i.name.replace("past_key_values.", "present.") for i in self._cache_inputs]

    @property
    def n_layers(self) -> int:
        """Layers with a cache: each has two inputs, of keys and of values."""
        return len(self._cache_inputs) // 2

    def empty_cache(self, batch: int) -> Cache:
        """A cache of no tokens."""
        return [self._empty(i, batch) for i in self._cache_inputs]

    def cache_length(self, past: Cache | None) -> int:
        """Tokens held by a cache."""
        if not past:
            return 0
        return int(past[0].shape[2] if isinstance(past[0], np.ndarray) else past[0].shape()[2])

    def forward(
        self, input_ids: ArrayLike, attention_mask: ArrayLike | None = None, past: Cache | None = None
    ) -> tuple[NDArray[np.float32], Cache]:
        """Logits (B, T, vocabulary) float32 of T new tokens, and the cache that `past` becomes.

        `input_ids` (B, T) and `attention_mask` (B, past + T; ones by default) may be numpy, torch on the CPU, or lists.
        """
        ids = np.ascontiguousarray(input_ids, dtype=np.int64)
        batch, new = ids.shape
        total = self.cache_length(past) + new
        mask = np.ones((batch, total), np.int64) if attention_mask is None else np.asarray(attention_mask, dtype=np.int64)
        if mask.shape != (batch, total):
            raise ValueError(
                f"attention_mask is {mask.shape}; {new} new tokens on {total - new} cached ones need {(batch, total)}"
            )
        feeds: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self.takes_positions:
            # Counted over the whole mask, handed in for the new tokens.
            feeds["position_ids"] = positions(mask)[:, -new:]
        cache = self.empty_cache(batch) if past is None else past
        cached = {i.name: value for i, value in zip(self._cache_inputs, cache, strict=True)}
        if self.provider == CPU:  # plain arrays: 10 % faster per step here than any kind of binding
            arrays: list[Any] = list(self.session.run(["logits", *self._cache_outputs], feeds | cached))
            return arrays[0], arrays[1:]
        return self._bound(feeds, cached)

    def generate_greedy(self, input_ids: ArrayLike, n: int, attention_mask: ArrayLike | None = None) -> NDArray[np.int64]:
        """The next `n` tokens (B, n), each the most likely one; an end-of-text token does not stop it."""
        ids = np.asarray(input_ids, dtype=np.int64)
        mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask, dtype=np.int64)
        tokens, past = [], None
        for _ in range(n):
            logits, past = self.forward(ids, mask, past)
            ids = logits[:, -1].argmax(-1, keepdims=True)
            mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
            tokens.append(ids)
        return np.concatenate(tokens, axis=1) if tokens else ids[:, :0]

    def _bound(self, feeds: dict[str, Any], cached: dict[str, Any]) -> tuple[NDArray[np.float32], Cache]:
        """One run whose cache stays on the provider's device; only logits come back."""
        device = _device(self.provider)
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, value in cached.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cpu")
        for name in self._cache_outputs:
            binding.bind_output(name, device)
        self.session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        return logits.numpy(), present

    def _empty(self, given: Any, batch: int) -> Any:
        import onnxruntime

        shape = (batch, given.shape[1], 0, given.shape[3])
        if self.provider == CPU and given.type in _NUMPY:
            return np.zeros(shape, _NUMPY[given.type])
        kind = _NUMPY.get(given.type, _BFLOAT16)
        # numpy has no bfloat16; an OrtValue has.
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, _device(self.provider))


def positions(attention_mask: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each token among the unmasked ones, as generation does; masked ones get 1."""
    return np.where(attention_mask == 0, 1, attention_mask.cumsum(-1) - 1)


def _device(provider: str) -> str:
    """Where a provider can keep a cache; those without an allocator of their own in Python take arrays of the CPU."""
    return "cuda" if provider == CUDA else "cpu"
