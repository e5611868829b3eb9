"""The transformers side: a quantizer named "compress" that swaps a Plan's modules in before the weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers import auto

from compress.loading.swapping import CompressConfig, SwapQuantizer
from compress.version import QUANT_METHOD

if TYPE_CHECKING:
    from compress.plan import Plan


_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")  # options that say where a hub id is found


class CompressQuantizer(SwapQuantizer):
    """Builds the replacements from the checked Plan, by the kinds of compress and of other packages."""

    def plan(self) -> Plan:
        """Checked. Raises ValueError where config.json holds something else."""
        from compress.plan import checked_plan

        config = self.quantization_config
        return checked_plan({"format_version": config.format_version, "modules": config.modules}, "quantization_config")

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Raises ValueError for a plan that is none."""
        # A plan that is none is told before a model is built around it.
        self.plan()

    def swap(self, model: Any) -> None:
        # Imported when needed: every program that uses transformers imports this file.
        from compress.loading.modules import apply_plan

        apply_plan(model, self.plan())

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
        from compress.loading.remote_code import saves_remote_code

        # A class of the checkpoint's own file is saved with that file by transformers.
        if type(model)._auto_class is None:
            saves_remote_code(model, self.plan())
        return super()._process_model_after_weight_loading(model, **options)


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

    Raises ValueError for a plan that this version does not read or a file beyond the limits of what is read, FileNotFoundError
    where there is no such model, and what transformers raises.

    >>> import compress
    >>> compress.from_pretrained("novella").config.num_hidden_layers
    6
    """
    from transformers import AutoModelForCausalLM

    from compress.checkpoint.locate import locate
    from compress.data import resolve_model

    register()
    # Of the hub, too, it is looked at before transformers reads it.
    hub = {option: kwargs[option] for option in _HUB if option in kwargs}
    folder = locate(resolve_model(str(path)), code=bool(kwargs.get("trust_remote_code")), **hub)
    check_folder(folder)
    return AutoModelForCausalLM.from_pretrained(folder, **kwargs)


def check_folder(folder: Path) -> None:
    """What transformers reads without limits of its own: config.json with its plan, and the headers of the weights.

    Raises FileNotFoundError or ValueError, one line per mistake.
    """
    from compress.checkpoint.config import read_config
    from compress.checkpoint.shards import Shards
    from compress.plan import read_plan

    read_config(folder)
    read_plan(folder)
    Shards(folder)


# Whoever imports this file, the hook first of all, wants the quantizer known.
register()
