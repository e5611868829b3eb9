"""Unit files: one finished piece of work each, safetensors with its fingerprint; a file that is there means done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from compress.checkpoint.files import atomic
from compress.checkpoint.shards import open_safetensors, save_tensors


@dataclass(frozen=True)
class Artefact:
    """The content of a unit file: tensors and JSON metadata. Same material, same bytes: no times, no paths."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    def __post_init__(self) -> None:
        # As it will be read back: whoever goes on with it now writes what a resumed run would write.
        object.__setattr__(self, "tensors", {name: tensor.cpu() for name, tensor in self.tensors.items()})
        object.__setattr__(self, "metadata", json.loads(json.dumps(self.metadata, sort_keys=True)))


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and values, one tensor in memory at a time; equal whatever holds them."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_unit(path: Path, artefact: Artefact, fingerprint: str) -> None:
    """One finished unit of work; the file's presence with this fingerprint means done."""
    metadata = {"fingerprint": fingerprint, "artefact": json.dumps(artefact.metadata, sort_keys=True)}
    with atomic(path) as temporary:
        save_tensors(temporary, dict(sorted(artefact.tensors.items())), metadata)


def read_unit(path: Path, fingerprint: str, only: Container[str] | None = None) -> Artefact | None:
    """The artefact, or None where the file is missing, damaged, or is of something else; `only` some tensors."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return None
            names = [name for name in handle.keys() if only is None or name in only]  # noqa: SIM118 - not a mapping
            return Artefact({name: handle.get_tensor(name) for name in names}, json.loads(metadata["artefact"]))
    except (SafetensorError, KeyError, json.JSONDecodeError):
        return None


class Spilled(Mapping[str, Tensor]):
    """The tensors of a unit file, read when asked for and not kept."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with open_safetensors(file) as handle:
            self._names = dict.fromkeys(sorted(handle.keys()))
            self.metadata: dict[str, Any] = json.loads(handle.metadata()["artefact"])

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)  # what `in` asks for
        with open_safetensors(self._file) as handle:
            return handle.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
