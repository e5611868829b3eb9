"""The transformers side: a quantizer named "compress" that swaps a Plan's modules in before the weights are read."""

from __future__ import annotations

import inspect
import math
import re
import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from compress.version import QUANT_METHOD

if TYPE_CHECKING:
    from torch import nn

    from compress.plan import ModuleSpec, Plan


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

    requires_calibration = True
    is_qat_trainable: Any = True
    is_compileable: Any = True
    quantization_config: CompressConfig

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    def validate_environment(self, *_: Any, **__: Any) -> None:
        self.quantization_config.plan()

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        apply_plan(model, self.quantization_config.plan())

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        model.is_quantized = False  # nothing is quantized: .half(), .float() and Trainer work as on any model
        return model


def register() -> None:
    """Make transformers know the quantizer. Does nothing the second time."""
    if QUANT_METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantization_config(QUANT_METHOD)(CompressConfig)
        auto.register_quantizer(QUANT_METHOD)(CompressQuantizer)


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Replace modules of `model` in place, with uninitialised parameters. Raises ValueError for a module that is not there."""
    prefix = str(getattr(model, "base_model_prefix", "")) + "."
    headless = not hasattr(model, prefix[:-1])  # AutoModel without a head: names lose the prefix

    def find(name: str) -> nn.Module:
        try:
            return model.get_submodule(name.removeprefix(prefix) if headless else name)
        except AttributeError:
            raise ValueError(f"the plan replaces {name!r}, which this {type(model).__name__} does not have") from None

    for spec in plan.modules:
        parent, _, child = spec.module.rpartition(".")
        find(parent).register_module(child, build(spec, find(spec.module)).train(model.training))
    link(plan.modules, find)


def link(specs: Iterable[ModuleSpec], find: Callable[[str], nn.Module]) -> None:
    """Connect the modules that read another one's basis to it, once all are in place."""
    for spec in specs:
        if spec.options.get("owner") is not None:
            owner: Any = find(str(spec.options["owner"]))
            if not hasattr(owner, "latent"):
                raise ValueError(f"{spec.module}: its owner {spec.options['owner']!r} holds no shared basis")
            module: Any = find(spec.module)
            module.link(owner)


def build(spec: ModuleSpec, original: nn.Module | None = None) -> nn.Module:
    """The runtime module of one spec. `original` is handed to the kinds that wrap what they replace.

    Raises ValueError for an unknown kind or options the kind does not take.
    """
    from compress.nn import KINDS, WRAPPERS

    options = checked_options(spec)
    if spec.kind in WRAPPERS:
        options["original"] = original
    try:
        return KINDS[spec.kind](**options)
    except TypeError as error:
        raise ValueError(f"{spec.module}: {spec.kind} does not take these options ({error})") from None


_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda v: type(v) is int and 0 <= v < 2**31),
    "bool": ("true or false", lambda v: type(v) is bool),
    "float": ("a finite number", lambda v: type(v) in (int, float) and math.isfinite(v)),
    "str": ("a dotted name", lambda v: type(v) is str and re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", v, re.ASCII) is not None),
}


def checked_options(spec: ModuleSpec) -> dict[str, Any]:
    """Arguments of a spec's runtime class, each of the type it is declared with: what a checkpoint says goes into generated
    source.

    Raises ValueError for an unknown kind, or an option of another type.
    """
    from compress.nn import KINDS

    if spec.kind not in KINDS:
        raise ValueError(
            f"{spec.module}: unknown kind {spec.kind!r}; this compress knows {', '.join(KINDS)}: a newer one wrote it"
        )
    parameters = inspect.signature(KINDS[spec.kind].__init__).parameters
    for key, value in spec.options.items():
        declared = str(parameters[key].annotation) if key in parameters else ""
        what, fits = _TYPES.get(declared.removesuffix(" | None"), ("", lambda _: True))
        if not fits(value) and not (value is None and declared.endswith("None")):
            raise ValueError(f"{spec.module}: {spec.kind}: {key} must be {what}, got {reprlib.repr(value)}")
    options: dict[str, Any] = dict(spec.options)
    if "expressions" in options:
        from compress.symbolic.compile import symbolic_options

        options = symbolic_options(options)
    return options


def attach_plan(model: Any, plan: Plan) -> None:
    """Record the plan in the model's config, so that plain `save_pretrained` writes a checkpoint that loads."""
    model.config.quantization_config = CompressConfig(**plan.to_json())


def from_pretrained(path: str | Path, **kwargs: Any) -> Any:
    """`AutoModelForCausalLM.from_pretrained` for a compressed or a plain checkpoint; "novella" is the packaged model."""
    from transformers import AutoModelForCausalLM

    from compress.data import resolve_model

    register()
    return AutoModelForCausalLM.from_pretrained(resolve_model(str(path)), **kwargs)


register()
