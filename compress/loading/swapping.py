"""What the quantizer is with compress and without it alike: `modeling_compress.py` holds a copy of this source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping  # not yet there when transformers calls us

    stock = next(cls for cls in type(model).__mro__ if cls.__module__.startswith("transformers."))
    return [] if stock is type(model) else get_checkpoint_conversion_mapping(stock.__name__) or []
