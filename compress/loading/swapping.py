"""What the quantizer is with compress and without it alike: `modeling_compress.py` holds a copy of this source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import __version__ as transformers_version
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from compress.version import QUANT_METHOD


class CompressConfig(QuantizationConfigMixin):
    """`quantization_config` of a compressed checkpoint: which module is replaced, by which kind, with which options."""

    def __init__(self, modules: list[dict[str, Any]] | None = None, format_version: int = 1, **_: Any) -> None:
        self.quant_method: Any = QUANT_METHOD
        self.format_version = format_version
        self.modules = modules or []


class SwapQuantizer(HfQuantizer):
    """Swaps modules on the meta device before the weights are read; the loader then fills them like any others."""

    # With this, transformers refuses to compress a plain model while loading it: that takes `compress fit`.
    requires_calibration = True
    is_qat_trainable: Any = True
    is_compileable: Any = True
    quantization_config: CompressConfig
    renames: Sequence[Any] = ()

    def swap(self, model: Any) -> None:
        """Put the replacements of `quantization_config` in the place of the model's own modules."""
        raise NotImplementedError("a subclass says where the replacements come from")

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """A loaded checkpoint can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Its parameters are ordinary ones."""
        return True

    def _convert_model_for_quantization(self, model: Any) -> None:
        """Nothing to convert: the plan says what is replaced. transformers' own asks for accelerate here."""

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        self.swap(model)
        self.renames = stock_renames(model)

    def update_weight_conversions(self, weight_conversions: list[Any], *model: Any) -> list[Any]:
        return [*super().update_weight_conversions(weight_conversions, *model), *self.renames]

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        model.is_quantized = False  # nothing is quantized: .half(), .float() and Trainer work as on any model
        return model


def stock_renames(model: Any) -> list[Any]:
    """What transformers renames in the files of a model's stock class (the head of GPT-NeoX): it goes by the name of the class,
    and does not know the subclass that a checkpoint's own file brings.
    """
    try:
        # Not yet there when transformers calls us.
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:  # transformers 4 renames nothing in the files
        return []
    stock = next(cls for cls in type(model).__mro__ if cls.__module__.startswith("transformers."))
    return [] if stock is type(model) else get_checkpoint_conversion_mapping(stock.__name__) or []


def with_older_names(config: Any) -> Any:
    """`config` as the installed transformers reads it: version 5 keeps rotary positions in `rope_parameters`, one dictionary or
    one for each type of layer; version 4 keeps that as a stranger's entry, and computes with defaults instead.
    """
    parameters: dict[str, Any] | None = getattr(config, "rope_parameters", None)
    if int(transformers_version.partition(".")[0]) >= 5 or not parameters:
        return config
    sliding = parameters.get("sliding_attention")
    rope = dict(parameters.get("full_attention") or parameters)
    found = {"rope_theta": rope.pop("rope_theta", None), "partial_rotary_factor": rope.pop("partial_rotary_factor", None)}
    # The names that Gemma 3 and GPT-NeoX had for the same things.
    found["rope_local_base_freq"] = sliding["rope_theta"] if sliding else None
    found["rotary_emb_base"], found["rotary_pct"] = found["rope_theta"], found["partial_rotary_factor"]
    for name, value in found.items():
        if value is not None:
            setattr(config, name, value)
    config.rope_scaling = None if rope.get("rope_type", "default") == "default" else rope
    return config
