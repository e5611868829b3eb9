"""Checkpoint → one readable standalone `model.py` that needs torch alone, with its weights beside it.

The file is written for this checkpoint: its sizes, its order of norms, its replaced modules, and nothing it does not use.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from compress.checkpoint.files import atomic, write_text
from compress.checkpoint.manifest import Manifest
from compress.checkpoint.shards import save_tensors
from compress.checkpoint.swap import replacing
from exporters.torch.assembly import source
from exporters.torch.parts import read

PART = "torch"
FILES = ("model.py", "model.safetensors", "tokenizer.json", "model.pt2")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export_torch(checkpoint: Path, out: Path, dtype: str = "float32", verify: bool = True) -> dict[str, Any]:
    """Write `model.py`, `model.safetensors` and `tokenizer.json` as the folder `out`; returns the report.

    `checkpoint` is a compressed folder or a plain one in HuggingFace format; `dtype` is that of weights and computation.
    With `verify`, logits and 64 greedy tokens are compared with transformers (see `exporters.torch.parity`).

    Raises ValueError for an unknown dtype or a damaged folder, NotImplementedError naming what is supported for an architecture
    or a replacement that the file cannot hold, RuntimeError where its logits or tokens are not those of the checkpoint: nothing
    is written then; FileExistsError where a file that compress did not write is in the way.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
    parts = read(checkpoint)
    with replacing(out, PART, FILES) as stage:
        write_text(stage / "model.py", source(parts))
        with atomic(stage / "model.safetensors") as temporary:
            save_tensors(temporary, dict(parts.tensors(DTYPES[dtype])), {"format": "pt"})
        if (checkpoint / "tokenizer.json").is_file():
            with atomic(stage / "tokenizer.json") as temporary:
                shutil.copyfile(checkpoint / "tokenizer.json", temporary)
        files = {name: (stage / name).stat().st_size for name in ("model.py", "model.safetensors")}
        report: dict[str, Any] = {"file": str(out / "model.py"), "bytes": sum(files.values()), "dtype": dtype}
        if verify:
            from exporters.torch.parity import compare

            report |= compare(checkpoint, stage, dtype)
    return report


def export_pt2(folder: Path) -> Path:
    """Write `model.pt2` (torch.export, any batch and length) into a folder that `export_torch` filled; returns its path."""
    from exporters.torch.parity import load_standalone

    module, model = load_standalone(folder)
    with Manifest(folder, PART).files("model.pt2") as (path,), TemporaryDirectory() as elsewhere:
        # torch.export wants to see the ending, which a file that is being written does not have.
        module.export_pt2(model, traced := Path(elsewhere) / path.name)
        with atomic(path) as temporary:
            shutil.copyfile(traced, temporary)
    return path
