"""The Plan: a versioned JSON list of module replacements, the one thing the loader, the exporters and the benchmark read.

A Plan is stored in `config.json` under `quantization_config`, beside the safetensors that hold the replacements' tensors.
It never names the method that made it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from compress.reading import json_text
from compress.validation import explain
from compress.version import FORMAT_VERSION, QUANT_METHOD

MAX_OPTIONS = 100_000  # values in the options of one module: 64 expressions of 300 nodes are 60,000


class ModuleSpec(BaseModel):
    """One replaced module: its dotted name in the full model, the runtime kind (a name in `compress.kinds`) and its
    options.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    module: str = Field(min_length=1)
    kind: str = Field(min_length=1)
    options: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("options", mode="before")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        # Before anything walks them: a checkpoint's options may be of any size and depth.
        json_text.check_values(value, "options", MAX_OPTIONS)
        return value


class Plan(BaseModel):
    """Replacements in the order they are applied.

    >>> plan = Plan(modules=[ModuleSpec(module="model.layers.0.mlp", kind="identity_mlp", options={"outer": "down_proj"})])
    >>> Plan.model_validate(plan.to_json()) == plan
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    modules: tuple[ModuleSpec, ...] = ()

    @field_validator("format_version")
    @classmethod
    def _readable(cls, value: int) -> int:
        if value != FORMAT_VERSION:
            raise ValueError(
                f"this checkpoint's plan has format_version {value}; this compress reads {FORMAT_VERSION}: "
                f"{'upgrade compress' if value > FORMAT_VERSION else 'fit the recipe again'}"
            )
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        twice = [name for name, count in Counter(spec.module for spec in self.modules).items() if count > 1]
        if twice:
            raise ValueError(f"the plan replaces {twice[0]!r} more than once; each module may appear once")
        return self

    def __getitem__(self, module: str) -> ModuleSpec:
        """The spec of a module by its dotted name. Raises KeyError where the plan leaves that module alone."""
        for spec in self.modules:
            if spec.module == module:
                return spec
        raise KeyError(module)

    def __contains__(self, module: object) -> bool:
        return any(spec.module == module for spec in self.modules)

    def without(self, prefix: str) -> Plan:
        """The plan with every spec at or below the module `prefix` dropped."""
        return Plan(modules=tuple(s for s in self.modules if not (s.module + ".").startswith(prefix + ".")))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as written to config.json (without transformers' own `quant_method` key)."""
        return self.model_dump(mode="json")


def read_plan(folder: Path) -> Plan:
    """The Plan in a folder's config.json; an empty one for a plain model.

    Raises FileNotFoundError without a config.json, ValueError for what is no plan, and for a model that another library
    quantized.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no config.json; give a folder in HuggingFace format")
    config: Any = json_text.read(file)
    given: Any = config.get("quantization_config") if isinstance(config, dict) else config  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    given = {} if given is None else given  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(given, dict):
        raise ValueError(f"{file} holds no object, or a quantization_config that is none; download the folder again")
    found: dict[str, Any] = {str(key): value for key, value in given.items()}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    method = found.pop("quant_method", QUANT_METHOD)
    if method != QUANT_METHOD:
        raise ValueError(f"{folder} is quantized by {method!r}; give a checkpoint that compress wrote, or a plain model")
    return checked_plan({key: found[key] for key in ("format_version", "modules") if key in found}, str(file))


def checked_plan(found: dict[str, Any], origin: str) -> Plan:
    """The Plan of plain data. Raises ValueError with one line per mistake, `origin` in front."""
    try:
        return Plan.model_validate(found)
    except ValidationError as error:
        raise ValueError("\n".join(f"{origin}: {line}" for line in explain(error, Plan))) from None
