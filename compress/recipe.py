"""The YAML schema of a recipe and its early errors: everything that can be known before a weight is read.

model: novella
calibration: {text: novella, sequences: 128, length: 256, seed: 0}
steps:
  - {method: feature_space, targets: {roles: all, layers: all}, rank: {keep: 0.8}}
evaluation: {texts: {own: novella}, length: 256}
output: runs/first
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from compress import methods
from compress.architecture import Architecture
from compress.beginning import BOS, Bos
from compress.compute import Compute
from compress.novella import FOLDER
from compress.packaged import recipe_file
from compress.reading import yaml_text
from compress.reading.overrides import set_value
from compress.texts import DEMO, TextSource
from compress.validation import explain, nearest

_LAYERS = re.compile(r"(?P<first>-?[0-9]{1,4})(-(?P<last>[0-9]{1,4}))?")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelReference(_Section):
    """The model to compress. A bare string in YAML means `name`."""

    name: str = Field(description='"novella" (packaged), a local folder, or a hub id')
    revision: str | None = Field(default=None, description="hub revision (branch, tag or commit)")

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class Targets(_Section):
    """Which modules a step replaces: roles × layers, or globs over full module names. A list in YAML means `modules`."""

    roles: list[str] | Literal["all"] = Field(
        default="all", description="of q k v o gate up down (qkv, gate_up where fused), or all"
    )
    layers: list[int] | Literal["all"] = Field(
        default="all", description="layer indices (negative from the end), `0-3`, or all"
    )
    modules: list[str] | None = Field(default=None, description="globs over full module names; excludes roles and layers")

    @model_validator(mode="before")
    @classmethod
    def _bare_list(cls, value: object) -> object:
        return {"modules": value} if isinstance(value, list) else value

    @field_validator("layers", mode="before")
    @classmethod
    def _ranges(cls, value: object) -> object:
        parts = value.split(",") if isinstance(value, str) and value != "all" else value
        if isinstance(parts, int):
            parts = [parts]
        return _expand(parts) if isinstance(parts, list) else parts

    @model_validator(mode="after")
    def _one_way(self) -> Targets:
        if self.modules is not None and self.model_fields_set & {"roles", "layers"}:
            raise ValueError("give globs (modules) or roles and layers, not both")
        return self


def _expand(parts: Sequence[object]) -> list[int]:
    """["0-2", 5] → [0, 1, 2, 5]"""
    out: list[int] = []
    for part in parts:
        # Four digits: a range is written out, and no model has more layers.
        found = _LAYERS.fullmatch(str(part).strip())
        if found is None:
            raise ValueError(f"layers: {str(part)[:100]!r} is neither an index nor a range such as 0-3")
        first, last = found["first"], found["last"]
        out += [int(first)] if last is None else range(int(first), int(last) + 1)
        if len(out) > 10_000:
            raise ValueError(f"layers: more than {10_000:,} indices; name each layer once")
    return out


class Step(_Section):
    """One step: a method's name, its targets, and the method's own options beside them."""

    method: str
    targets: Targets = Targets()
    options: methods.Method

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: object) -> object:
        if not isinstance(value, Mapping) or "options" in value:
            return value
        rest = dict(value)
        name, targets, layers = rest.pop("method", None), rest.pop("targets", {}), rest.pop("layers", None)
        if name is None:
            raise ValueError(f"a step needs method: one of {', '.join(methods.names())}")
        if name not in methods.names():
            raise ValueError(f"unknown method {name!r}; {nearest(str(name), methods.names())}")
        if layers is not None:
            if not isinstance(targets, Mapping) or "layers" in targets:
                raise ValueError("layers is given twice: beside targets and inside it, or beside globs")
            targets = {**targets, "layers": layers}
        method = methods.load(str(name))
        try:
            options = method.model_validate(rest)
        except ValidationError as error:
            raise ValueError("; ".join(explain(error, method))) from None
        return {"method": name, "targets": targets, "options": options}

    def to_yaml(self) -> dict[str, Any]:
        targets = self.targets.model_dump(mode="json", exclude_unset=True)
        return {
            "method": self.method,
            **({"targets": targets} if targets else {}),
            **self.options.model_dump(mode="json", exclude_unset=True),
        }


class Evaluation(_Section):
    """What `fit` measures at the end."""

    texts: dict[str, TextSource] = Field(default_factory=dict, description="named texts; perplexity of each is reported")
    length: Annotated[int, Field(ge=2)] = Field(default=256, description="window length in tokens")
    sequences: Annotated[int, Field(ge=1)] | None = Field(default=None, description="at most this many windows per text")
    bos: Bos = Field(default="auto", description=f"what every window begins with ({BOS})")
    controls: list[str] = Field(
        default_factory=list,
        description="for MLP steps: the same layers replaced by identity, zero, mean, pca (PCA-only), "
        "or affine (an affine map through the same latents; of residual_mlp, its own map alone)",
    )

    @field_validator("texts", mode="before")
    @classmethod
    def _bare_texts(cls, value: object) -> object:
        if isinstance(value, str):
            value = {Path(value).stem: value}
        if isinstance(value, Mapping):
            return {k: {"text": v} if isinstance(v, str) else v for k, v in value.items()}
        return value

    @field_validator("controls")
    @classmethod
    def _known_controls(cls, value: list[str]) -> list[str]:
        known = [control for name in methods.names() for control in methods.load(name).controls]
        for control in value:
            if control not in known:
                raise ValueError(f"unknown control {control!r}; {nearest(control, sorted(known))}")
        return value

    def source(self, name: str) -> TextSource:
        """One text with this section's window length, count and beginning, unless the text gives its own."""
        text = self.texts[name]
        given = text.model_fields_set
        ours = {"length": self.length, "sequences": self.sequences, "bos": self.bos}
        update = {key: value for key, value in ours.items() if key not in given and value is not None}
        return text.model_copy(update=update)


class Refinement(_Section):
    """Block refinement: after a decoder layer's modules are replaced, optimise them against the original layer's outputs."""

    steps: Annotated[int, Field(ge=1)] = Field(default=200, description="Adam steps per layer")
    lr: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="peak learning rate, cosine to zero")
    batch: Annotated[int, Field(ge=1)] = Field(default=16, description="windows per step")
    anchor: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.25, description="share of each step on the original model's inputs"
    )
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1, description="share of the windows that choose the best step"
    )


class Finetuning(_Section):
    """After the fit, all replaced modules together against the original's next-token distribution; both models in memory."""

    steps: Annotated[int, Field(ge=1)] = Field(default=200, description="Adam steps")
    lr: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="peak learning rate, warm-up, cosine to zero")
    batch: Annotated[int, Field(ge=1)] = Field(default=16, description="windows per step")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05, description="share of the windows that choose the best step"
    )


class Recipe(_Section):
    """A whole run."""

    model: ModelReference
    calibration: TextSource = Field(default_factory=lambda: TextSource(text="novella", sequences=128, length=256))
    steps: Annotated[list[Step], Field(min_length=1)]
    propagate_error: bool = Field(
        default=False, description="calibrate each layer on the outputs of the compressed layers before it"
    )
    refine: Refinement | None = Field(default=None, description="block refinement of each layer after its modules are replaced")
    finetune: Finetuning | None = Field(default=None, description="whole-model fine-tuning of the replaced modules, last")
    keep_dense_if_slower: bool | str = Field(
        default=False, description="leave dense what is slower factored, timed on this device: true for cpu, or cpu, cuda, mps"
    )
    evaluation: Evaluation = Evaluation()
    compute: Compute = Field(default=Compute(), description="how the fit computes")
    output: Path = Field(description="folder of the checkpoint; ~ is the home folder")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("output")
    @classmethod
    def _home(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError:  # ~somebody
            raise ValueError(f"there is no home folder for {str(value)!r}; give a path") from None

    @model_validator(mode="after")
    def _own_text(self) -> Recipe:
        # The packaged text is the packaged model's; whatever it says of another model means nothing.
        if "calibration" not in self.model_fields_set and self.model.name not in (DEMO, str(FOLDER)):
            raise ValueError(
                f"calibration is left out, and the packaged text is for {DEMO} alone; give text like what the model will read: "
                "calibration: {text: FILE.txt, sequences: 128, length: 256}"
            )
        return self

    def to_yaml(self) -> str:
        """The recipe as YAML, such that loading it again gives the same recipe."""
        data = self.model_dump(mode="json", exclude_unset=True, exclude={"steps"})
        data["steps"] = [step.to_yaml() for step in self.steps]
        return yaml.safe_dump(data, sort_keys=False)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe; `overrides` are `dotted.key=value` with YAML values, as `--set` gives them.

    Raises FileNotFoundError or ValueError with one line per mistake: what was given, what is allowed, the nearest match.
    """
    return parse_recipe(read_yaml(path), overrides, str(path))


def read_yaml(path: str | Path) -> Any:
    """The plain data of a recipe file, unchecked. Raises FileNotFoundError, or ValueError where it is no YAML."""
    return yaml_text.read(recipe_file(path))


def parse_recipe(data: object, overrides: Iterable[str] = (), origin: str = "recipe") -> Recipe:
    """A recipe from plain data; see `load_recipe`."""
    if not isinstance(data, dict):
        raise ValueError(f"{origin}: a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}")
    for override in overrides:
        set_value(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ValueError("\n".join(f"{origin}: {line}" for line in explain(error, Recipe))) from None


def target_layers(targets: Targets, n_layers: int) -> list[int]:
    """The layer indices a step names, sorted. Raises ValueError for one that is not there."""
    if targets.layers == "all":
        return list(range(n_layers))
    bad = [i for i in targets.layers if not -n_layers <= i < n_layers]
    if bad:
        raise ValueError(f"targets: layer {bad[0]} given; the model has layers 0 to {n_layers - 1}")
    return sorted({i % n_layers for i in targets.layers})


def target_modules(targets: Targets, architecture: Architecture, n_layers: int) -> list[str]:
    """Full names of the linears a step names, in layer order. Raises ValueError where nothing matches."""
    everything = [architecture.module(i, role) for i in range(n_layers) for role in architecture.roles]
    if targets.modules is not None:
        for pattern in targets.modules:
            if not fnmatch.filter(everything, pattern):
                raise ValueError(f"targets: {pattern!r} matches no module; {nearest(pattern, everything)[:400]}")
        return [name for name in everything if any(fnmatch.fnmatchcase(name, p) for p in targets.modules)]
    roles = list(architecture.roles) if targets.roles == "all" else targets.roles
    for role in roles:
        if role not in architecture.roles:
            raise ValueError(f"targets: role {role!r} is not in {architecture.model_type}; {nearest(role, architecture.roles)}")
    layers = target_layers(targets, n_layers)
    if not roles or not layers:
        raise ValueError(
            f"targets: {json.dumps(targets.model_dump(exclude_unset=True))} matches nothing; give roles and layers"
        )
    return [architecture.module(i, role) for i in layers for role in architecture.roles if role in roles]
