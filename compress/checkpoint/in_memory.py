"""The tensors of a model that is loaded already, under the names that `save_pretrained` would write them by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from torch import Tensor

from compress.architecture import architecture
from compress.checkpoint.shards import DTYPE_NAMES
from compress.checkpoint.units import hash_tensors


class InMemory:
    """A transformers model as a source of tensors: nothing is copied, tied weights appear once."""

    def __init__(self, model: Any, name: str = "the model in memory") -> None:
        self.name = name
        self._tensors = _stored(model)
        empty = [key for key, value in self._tensors.items() if value.is_meta]
        if empty:
            raise ValueError(f"{name}: {empty[0]} is on the meta device; load the model with its weights")
        self.shapes = {key: tuple(value.shape) for key, value in self._tensors.items()}
        self.dtypes = {key: DTYPE_NAMES[value.dtype] for key, value in self._tensors.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def tensor(self, name: str) -> Tensor:
        """One tensor on the CPU: the model's own memory where it is there already. Raises KeyError."""
        return self._tensors[name].cpu()

    def under(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose name starts with `prefix`, by full name."""
        return {name: self.tensor(name) for name in self if name.startswith(prefix)}

    def bytes(self, name: str) -> int:
        return self._tensors[name].nbytes

    def fingerprint(self) -> str:
        """sha256 over names, dtypes, shapes and values: equal models are one model, whatever process they are in."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return hash_tensors(self._tensors)


def _stored(model: Any) -> dict[str, Tensor]:
    """state_dict without what `save_pretrained` leaves out: of weights that share memory, the keys declared as tied."""
    left_out = model._keys_to_ignore_on_save or ()
    state = {key: value.detach() for key, value in model.state_dict().items() if key not in left_out}
    declared = [re.compile(pattern) for pattern in (getattr(model, "all_tied_weights_keys", None) or ())]
    first: dict[tuple[Any, ...], str] = {}
    for key in sorted(state, key=lambda key: (any(pattern.search(key) for pattern in declared), key)):
        value = state[key]
        memory = (value.device, value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride())
        if value.numel() and not value.is_meta and first.setdefault(memory, key) != key:
            del state[key]
    row = architecture(model.config.model_type)
    head = row.head + "."  # written under another name by some families
    return {row.stored_head + "." + k.removeprefix(head) if k.startswith(head) else k: v for k, v in state.items()}
