"""The transformers side: a quantizer named "compress" that swaps a Plan's modules in before the weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from compress.version import QUANT_METHOD

if TYPE_CHECKING:
    from compress.plan import Plan


class CompressConfig(QuantizationConfigMixin):
    """`quantization_config` of a compressed checkpoint: the Plan as JSON."""

    def __init__(self, modules: list[dict[str, Any]] | None = None, format_version: int = 1, **_: Any) -> None:
        self.quant_method: Any = QUANT_METHOD
        self.format_version = format_version
        self.modules = modules or []

    def plan(self) -> Plan:
        """Checked. Raises ValueError where config.json holds something else."""
        from compress.plan import Plan

        return Plan.model_validate({"format_version": self.format_version, "modules": self.modules})


class CompressQuantizer(HfQuantizer):
    """Builds the replaced modules on the meta device; the loader then fills them like any others."""

    # With this, transformers refuses to compress a plain model while loading it: that takes `compress fit`.
    requires_calibration = True
    is_qat_trainable: Any = True
    is_compileable: Any = True
    quantization_config: CompressConfig
    renames: Sequence[Any] = ()

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """A loaded checkpoint can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Its parameters are ordinary ones."""
        return True

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Raises ValueError for a plan that is none."""
        # A plan that is none is told before a model is built around it.
        self.quantization_config.plan()

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        # Imported when needed: every program that uses transformers imports this file.
        from compress.loading.modules import apply_plan

        apply_plan(model, self.quantization_config.plan())
        self.renames = _renames(model)

    def update_weight_conversions(self, weight_conversions: list[Any], *model: Any) -> list[Any]:
        return [*super().update_weight_conversions(weight_conversions, *model), *self.renames]

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        model.is_quantized = False  # nothing is quantized: .half(), .float() and Trainer work as on any model
        return model


def _renames(model: Any) -> list[Any]:
    """What transformers renames in the files of a model's stock class (the head of GPT-NeoX): it goes by the name of the class,
    and does not know the subclass that a checkpoint's own file brings.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping  # not yet there when transformers calls us

    stock = next(cls for cls in type(model).__mro__ if cls.__module__.startswith("transformers."))
    return [] if stock is type(model) else get_checkpoint_conversion_mapping(stock.__name__) or []


def register() -> None:
    """Make transformers know the quantizer. Does nothing the second time."""
    if QUANT_METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantization_config(QUANT_METHOD)(CompressConfig)
        auto.register_quantizer(QUANT_METHOD)(CompressQuantizer)


def attach_plan(model: Any, plan: Plan) -> None:
    """Record the plan in the model's config, so that plain `save_pretrained` writes a checkpoint that loads."""
    model.config.quantization_config = CompressConfig(**plan.to_json())


def from_pretrained(path: str | Path, **kwargs: Any) -> Any:
    """`AutoModelForCausalLM.from_pretrained` for a compressed or a plain checkpoint.

    Args:
        path: a folder, a hub id, or "novella", the packaged model.
        kwargs: transformers' own: dtype, device_map, attn_implementation, …

    Returns the model, in eval mode.

    Raises ValueError for a plan that this version does not read, and what transformers raises.

    >>> import compress
    >>> compress.from_pretrained("novella").config.num_hidden_layers
    6
    """
    from transformers import AutoModelForCausalLM

    from compress.data import resolve_model

    register()
    return AutoModelForCausalLM.from_pretrained(resolve_model(str(path)), **kwargs)


# Whoever imports this file, the hook first of all, wants the quantizer known.
register()
