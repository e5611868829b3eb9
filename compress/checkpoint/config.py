"""What a model folder says of itself, checked before transformers reads it: types, sizes, limits of every JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.reading import json_text
from compress.validation import Finite, explain

_Layers = Annotated[int, Field(ge=1, le=10_000)]
_Heads = Annotated[int, Field(ge=1, le=2**14)]
_Width = Annotated[int, Field(ge=1, le=2**20)]
_Count = Annotated[int, Field(ge=1, lt=2**31)]
_Token = Annotated[int, Field(ge=-1, lt=2**31)]  # −1 is how some write none
_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=100)]
_Rotary = (
    Finite | _Word | bool | None | Annotated[list[Finite], Field(max_length=2**14)]
)  # a factor, a type, longrope's factors
_VOCABULARY_VALUES = 8_000_000  # of tokenizer.json: 262,000 tokens, with half a million merges of three values each


class Described(BaseModel):
    """The entries of a config.json that sizes are made of, under all the names that architectures give them.

    transformers builds lists and tables of these sizes before any weight is read; a number too many is all memory there is.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    model_type: _Word
    num_hidden_layers: _Layers | None = None
    n_layer: _Layers | None = None
    num_attention_heads: _Heads | None = None
    n_head: _Heads | None = None
    num_key_value_heads: _Heads | None = None
    head_dim: Annotated[int, Field(ge=1, le=2**14)] | None = None
    hidden_size: _Width | None = None
    n_embd: _Width | None = None
    word_embed_proj_dim: _Width | None = None
    intermediate_size: Annotated[int, Field(ge=1, le=2**22)] | None = None
    n_inner: Annotated[int, Field(ge=1, le=2**22)] | None = None
    ffn_dim: Annotated[int, Field(ge=1, le=2**22)] | None = None
    vocab_size: Annotated[int, Field(ge=1, le=2**26)] | None = None
    max_position_embeddings: _Count | None = None
    n_positions: _Count | None = None
    sliding_window: _Count | None = None
    hidden_act: _Word | None = None
    hidden_activation: _Word | None = None
    activation_function: _Word | None = None
    rms_norm_eps: Finite | None = None
    layer_norm_eps: Finite | None = None
    layer_norm_epsilon: Finite | None = None
    rope_theta: Finite | None = None
    rope_parameters: dict[_Word, _Rotary | dict[_Word, _Rotary]] | None = None
    rope_scaling: dict[_Word, _Rotary] | None = None
    layer_types: Annotated[list[_Word], Field(max_length=10_000)] | None = None
    bos_token_id: _Token | None = None
    eos_token_id: _Token | Annotated[list[_Token], Field(max_length=1000)] | None = None
    pad_token_id: _Token | None = None


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json. Raises FileNotFoundError, or ValueError with one line per entry that cannot be.

    The other JSON files of the folder, which transformers and tokenizers parse without limits, are counted too.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no config.json; give a folder in HuggingFace format")
    found = json_text.read(file)
    try:
        Described.model_validate(found)
    except ValidationError as error:
        raise ValueError("\n".join(f"{file}: {line}" for line in explain(error, Described))) from None
    for other in sorted(folder.glob("*.json")):
        if other.name in ("tokenizer.json", "vocab.json"):
            json_text.check(other, _VOCABULARY_VALUES)
        elif "token" in other.name or "generation" in other.name:
            json_text.check(other)
    return found


def load_config(folder: Path) -> Any:
    """The transformers configuration of a folder that has been checked; code that the folder brings is never run.

    Raises what `read_config` raises, and ValueError where transformers makes nothing of it.
    """
    from transformers import AutoConfig

    read_config(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of a stranger's values: transformers raises whatever comes up
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])[:300] or type(error).__name__
        raise ValueError(f"{folder / 'config.json'}: transformers cannot read it: {reason}") from None
