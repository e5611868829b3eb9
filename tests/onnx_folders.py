"""A few exported folders, each made once for all test processes: tracing a model costs seconds, reading its graph nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from checkpoints import tiny_checkpoint
from filelock import FileLock
from long import LONG
from safetensors.torch import load_file, save_file

from exporters.onnx.graph import export_onnx


@dataclass(frozen=True)
class Case:
    """A random checkpoint and how to export it."""

    model_type: str
    kinds: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


# Between them: grouped queries, biases, tied and untied heads, Conv1D, every linear kind, two opsets, half precision.
CASES = {
    "llama": Case("llama", ("low_rank_linear", "symbolic_mlp")),
    "qwen2": Case("qwen2", ("pivoted_linear", "mean_mlp"), {"opset": 20}),
    "gpt2": Case("gpt2", ("dense_linear", "affine_mlp"), config={"tie_word_embeddings": False}),
    "shared": Case("llama", ("shared_pivoted", "symbolic_mlp"), {"dtype": "float16"}),
    "across": Case("qwen3", ("shared_across", "dense_linear")),  # whose biases are in the weights
}
if LONG:
    CASES["opt"] = Case("opt", ("low_rank_linear", "symbolic_mlp"), config={"tie_word_embeddings": False})
FLOAT32 = tuple(name for name, case in CASES.items() if case.options.get("dtype") is None)


def folders(name: str, factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkpoint, exported folder) of a case; made by the first process that asks."""
    base = factory.getbasetemp()
    root = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "onnx" / name
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "lock"):
        if not (root / "out" / "export.json").exists():
            case = CASES[name]
            tiny_checkpoint(root / "checkpoint", case.model_type, *case.kinds, **case.config)
            if name == "llama":
                _share_bases(root / "checkpoint" / "model.safetensors")
            export_onnx(root / "checkpoint", root / "out", **case.options)
    return root / "checkpoint", root / "out"


def _share_bases(file: Path) -> None:
    """Let q, k and v of the first layer read one basis, each with a copy of its own, as a checkpoint stores it."""
    tensors = load_file(file)
    for role in "kv":
        tensors[f"model.layers.0.self_attn.{role}_proj.basis"] = tensors["model.layers.0.self_attn.q_proj.basis"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
