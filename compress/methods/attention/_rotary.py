"""The rotary frequencies an attention is called with."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

FIXED = ("default", "linear", "llama3", "yarn")  # the others change with the length of the text


def rotary_frequencies(attention: nn.Module) -> tuple[Tensor, float]:
    """(frequencies (head_dim / 2,) float32, factor of cosine and sine) of a transformers attention.

    Raises NotImplementedError where they depend on the length, or turn a part of the head only.
    """
    module: Any = attention
    config = module.config
    kind = str((getattr(config, "rope_parameters", None) or {}).get("rope_type", "default"))
    if kind not in FIXED:
        raise NotImplementedError(f"rotary positions {kind!r} change with the length; there are {', '.join(FIXED)}")
    # The family's own class, from the file that defines its attention: its name begins with the family's.
    source = vars(sys.modules[type(module).__module__])
    embedding = next(value for name, value in source.items() if name.endswith("RotaryEmbedding"))(config=config)
    frequencies: Tensor = embedding.inv_freq.float()
    if 2 * len(frequencies) != module.head_dim:
        raise NotImplementedError(f"{2 * len(frequencies)} of {module.head_dim} dimensions of a head are turned; all must be")
    return frequencies, float(embedding.attention_scaling)
