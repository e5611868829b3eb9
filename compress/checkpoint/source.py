"""Where tensors come from, by name: files (`shards.py`) or a model in memory (`in_memory.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from torch import Tensor


class TensorSource(Protocol):
    """The tensors of a model by the names they have, or would have, in its safetensors files."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Known without reading a weight."""
        ...

    @property
    def dtypes(self) -> Mapping[str, str]:
        """In safetensors' words: F32, BF16, …"""
        ...

    def __contains__(self, name: object) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def tensor(self, name: str) -> Tensor:
        """One tensor on the CPU, in the dtype it is stored in. Raises KeyError."""
        ...

    def under(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose name starts with `prefix`, by full name."""
        ...

    def bytes(self, name: str) -> int: ...

    def fingerprint(self) -> str:
        """Changed by any change of the tensors; the same for the same source in another process."""
        ...
