"""Safetensors on disk, read lazily by name through memory maps. Nothing here ever unpickles."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from compress.checkpoint.files import hash_file, hash_json
from compress.reading import json_text, tensor_header

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BYTES = {name: dtype.itemsize for dtype, name in DTYPE_NAMES.items()}


class Shards:
    """The tensors of a model folder, read lazily by name through memory maps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            self._file = _weight_map(index)
            missing = sorted({name for name in self._file.values() if not (folder / name).is_file()})
            if missing:
                raise FileNotFoundError(
                    f"{folder}: the index names {missing[0]}, which is not there; download the folder again"
                )
        elif (folder / "model.safetensors").is_file():
            with open_safetensors(folder / "model.safetensors") as handle:
                self._file = dict.fromkeys(handle.keys(), "model.safetensors")
        else:
            raise FileNotFoundError(
                f"{folder}: no model.safetensors or index; pickled weights are never read: save as safetensors"
            )
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file in sorted(set(self._file.values())):
            with open_safetensors(folder / file) as handle:
                for name in handle.keys():  # noqa: SIM118 - not a mapping
                    piece = handle.get_slice(name)
                    self.shapes[name], self.dtypes[name] = tuple(piece.get_shape()), piece.get_dtype()
        if absent := sorted(set(self._file) - set(self.shapes)):
            raise ValueError(f"{folder}: no file holds {absent[0]!r}, which the index names; download the folder again")
        if odd := next((name for name in self._file if self.dtypes[name] not in _BYTES), None):
            raise ValueError(f"{folder}: {odd!r} is {self.dtypes[odd]}; allowed: {', '.join(_BYTES)}")

    @property
    def name(self) -> str:
        return str(self.folder)

    def __contains__(self, name: object) -> bool:
        return name in self._file

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def tensor(self, name: str) -> Tensor:
        """One tensor, mapped, not copied. Raises KeyError."""
        with open_safetensors(self.folder / self._file[name]) as handle:
            return handle.get_tensor(name)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose name starts with `prefix`, by full name."""
        by_file: dict[str, list[str]] = {}
        for name, file in self._file.items():
            if name.startswith(prefix):
                by_file.setdefault(file, []).append(name)
        out: dict[str, Tensor] = {}
        for file, names in by_file.items():
            with open_safetensors(self.folder / file) as handle:
                out.update((name, handle.get_tensor(name)) for name in names)
        return out

    def bytes(self, name: str) -> int:
        return torch.Size(self.shapes[name]).numel() * _BYTES[self.dtypes[name]]

    def fingerprint(self) -> str:
        """Hash over the content of the files, whatever their names, places and times: changed by any change of the model."""
        return hash_json(sorted(hash_file(self.folder / file) for file in set(self._file.values())))


def _weight_map(index: Path) -> dict[str, str]:
    """{tensor: file beside the index}. Raises ValueError for what is no index, and for names that lead out of the folder."""
    found = json_text.read(index)
    files = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{index} has no weight_map; download the folder again")
    for file in files.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"{index} names {str(file)[:200]!r}; allowed: .safetensors files beside it")
    return files


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """The file, mapped. Raises ValueError where its header is none, is beyond the limits, or disagrees with the bytes."""
    tensor_header.check(path)
    try:
        handle = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a readable safetensors file ({error}); it may be cut off: write or download it again"
        ) from None
    with handle as opened:
        yield opened


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file. Raises OSError, as any other write does, where the disk does not take it."""
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    except SafetensorError as error:
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
