"""A checkpoint's weights as shards with an index, and the files that are copied beside them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from compress.checkpoint import disk
from compress.checkpoint.files import atomic, hash_file, write_json
from compress.checkpoint.locate import TOKENIZER_FILES
from compress.checkpoint.shards import save_tensors

SHARD_BYTES = 256 * 1024**2  # small enough that writing never dominates the memory of a fit


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], total_bytes: int) -> dict[str, str]:
    """Write named tensors as they come, in shards of at most `SHARD_BYTES`, with an index where there is more than one.

    `folder` has no shards yet; `total_bytes` says how many there will be. Returns {file name: sha256}.
    """
    disk.make(folder)
    if total_bytes <= SHARD_BYTES:
        written = [_write_shard(folder / "model.safetensors", dict(tensors))]
        weight_map: dict[str, str] = {}
    else:
        weight_map, parts = {}, []
        for part in _parts(tensors):
            parts.append((f".{len(parts)}.part", list(part)))
            _write_shard(folder / parts[-1][0], part)
        written = []
        for number, (temporary, names) in enumerate(parts, 1):
            file = folder / f"model-{number:05d}-of-{len(parts):05d}.safetensors"
            disk.move(folder / temporary, file)
            weight_map |= dict.fromkeys(names, file.name)
            written.append(file)
    if weight_map:
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
    return {file.name: hash_file(file) for file in sorted(written)}


def _parts(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if part and size + tensor.nbytes > SHARD_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    if part:
        yield part


def _write_shard(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    with atomic(path) as temporary:
        save_tensors(temporary, tensors, {"format": "pt"})
    return path


def copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's and generation's files, as they are."""
    for pattern in (*TOKENIZER_FILES, "generation_config.json"):
        for file in sorted(source.glob(pattern)):
            with atomic(target / file.name) as temporary:
                shutil.copyfile(file, temporary)
