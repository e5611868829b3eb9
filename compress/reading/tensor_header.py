"""The header of a safetensors file, checked before the library maps the file: sizes, and shapes that agree with the bytes."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from compress.reading import json_text

MAX_BYTES = 32 * 2**20
MAX_RANK = 16
_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}


def check(path: Path) -> None:
    """Raises ValueError where the header is beyond the limits, or its tensors are not what the file holds.

    Once per file as it is: a model is opened once for every tensor.
    """
    found = path.stat()
    _checked(path, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=4096)
def _checked(path: Path, size: int, *_: int) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path}: not a readable safetensors file; it may be cut off: write or download it again")
        if length > MAX_BYTES:
            raise ValueError(f"{path}: a header of {length:,} bytes; at most {MAX_BYTES:,} are read")
        raw = file.read(length)
    header = json_text.loads(raw, f"{path}: header")
    if not isinstance(header, dict):
        raise ValueError(f"{path}: header is a JSON {type(header).__name__}, not an object")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    spans = sorted(_span(f"{path}: tensor {name[:200]!r}", entry) for name, entry in entries.items())
    end = 0
    for start, stop in spans:
        if start != end:
            raise ValueError(f"{path}: tensors overlap or leave a gap at byte {min(start, end)}; write or download it again")
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"{path}: tensors of {end:,} bytes in a file that holds {size - 8 - length:,}; download it again")


def _span(where: str, entry: Any) -> tuple[int, int]:
    """First byte and the byte after the last. Raises ValueError where dtype, shape and offsets do not belong together."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where}: needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError(f"{where}: dtype {str(dtype)[:40]!r} given; allowed: {', '.join(_BYTES)}")
    if not _sizes(shape) or len(shape) > MAX_RANK:
        raise ValueError(f"{where}: a shape is a list of at most {MAX_RANK} sizes")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{where}: data_offsets are two sizes, the first not the larger")
    if (needed := math.prod(shape) * _BYTES[dtype]) != offsets[1] - offsets[0]:
        raise ValueError(f"{where}: {dtype} of shape {shape} is {needed:,} bytes, the offsets say {offsets[1] - offsets[0]:,}")
    return offsets[0], offsets[1]


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**48 for number in value)
