"""The model that is compressed, wherever it is: its weights, its configuration, and what a checkpoint carries beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from compress import data
from compress.checkpoint.config import load_config
from compress.checkpoint.files import read_json
from compress.checkpoint.in_memory import InMemory
from compress.checkpoint.shards import Shards
from compress.checkpoint.source import TensorSource
from compress.checkpoint.writer import copy_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Original(Protocol):
    """What a fit reads of a model."""

    @property
    def weights(self) -> TensorSource: ...

    @property
    def config(self) -> Any:
        """The transformers configuration, as loading the saved model would give it."""
        ...

    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def plain_config(self) -> dict[str, Any]:
        """The content of config.json."""
        ...

    def write_beside(self, target: Path) -> None:
        """Write the tokenizer's and generation's files into the folder `target`."""
        ...


class OnDisk:
    """A folder in HuggingFace format. Raises FileNotFoundError where it has no safetensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = load_config(folder)
        self.weights = Shards(folder)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return data.load_tokenizer(self.folder)

    def plain_config(self) -> dict[str, Any]:
        return read_json(self.folder / "config.json") or {}

    def write_beside(self, target: Path) -> None:
        copy_tokenizer(self.folder, target)


class Loaded:
    """A transformers model in memory, read and never changed; without a tokenizer, the one it was loaded with.

    Raises ValueError for what is no transformers model.
    """

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        from transformers import PreTrainedModel

        if not isinstance(model, PreTrainedModel):
            raise ValueError(f"model: {type(model).__name__} given; give a transformers model, such as LlamaForCausalLM")
        self._model, self._tokenizer = model, tokenizer
        self.weights = InMemory(model)

    @cached_property
    def config(self) -> Any:
        # Through its stored form: what only this process chose (an attention kernel) must not reach the fit.
        return type(self._model.config).from_dict(self.plain_config())

    def tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            try:
                self._tokenizer = data.load_tokenizer(self._model.name_or_path or "(no name)")
            except FileNotFoundError:
                raise ValueError(
                    f"{self.weights.name} names no folder with a tokenizer; give tokenizer= beside model="
                ) from None
        return self._tokenizer

    def plain_config(self) -> dict[str, Any]:
        """As `save_pretrained` writes it, with the dtype and the class it records."""
        plain: Mapping[str, Any] = json.loads(self._model.config.to_json_string())
        recorded = {"architectures": [type(self._model).__name__], "dtype": str(self._model.dtype).removeprefix("torch.")}
        return dict(sorted({**plain, **recorded}.items()))

    def write_beside(self, target: Path) -> None:
        with TemporaryDirectory() as name:
            self.tokenizer().save_pretrained(name)
            if self._model.can_generate() and self._model.generation_config is not None:
                self._model.generation_config.save_pretrained(name)
            copy_tokenizer(Path(name), target)
