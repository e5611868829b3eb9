"""A recipe's units of work: which modules each step replaces, one file per unit, and what makes a finished file still valid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compress import methods
from compress.architecture import Architecture
from compress.checkpoint.files import hash_json
from compress.checkpoint.units import Artefact
from compress.methods.base import Group, Method
from compress.recipe import Recipe, Step, target_layers, target_modules

UNIT_FORMAT = 1  # raise when the content of unit files changes meaning


@dataclass(frozen=True)
class Unit:
    """One group and the method that fits it."""

    step: Step
    group: Group

    @property
    def method(self) -> Method:
        """The step's method with its options."""
        return self.step.options

    def fingerprint(self, source_hash: str) -> str:
        """Hash of everything the artefact depends on; `source_hash` stands for the model, the calibration tokens, the seed."""
        # What is decided late (a rank) is not fitted, so one file serves every choice of it.
        options = self.method.model_dump(mode="json", exclude=set(self.method.decided_late))
        depends = [UNIT_FORMAT, source_hash, self.step.method, options, self.group.layer, self.group.modules]
        # A method of another package may change at any time without UNIT_FORMAT being raised.
        foreign = methods.registry.source_hash(self.step.method)
        return hash_json([*depends, foreign] if foreign else depends)

    def file(self, work: Path, source_hash: str) -> Path:
        """The unit file; its name carries the fingerprint, so that other options never overwrite a finished fit."""
        return work / "units" / f"{self.group.name}.{self.fingerprint(source_hash)[:12]}.safetensors"


def units_of(recipe: Recipe, architecture: Architecture, n_layers: int) -> list[Unit]:
    """All units in layer order. Raises ValueError where targets match nothing or two steps replace the same module."""
    units = [unit for index, step in enumerate(recipe.steps) for unit in _units_of_step(index, step, architecture, n_layers)]
    _refuse_overlaps(units, architecture)
    return sorted(units, key=lambda u: (u.group.layer, u.group.step))


def _units_of_step(index: int, step: Step, architecture: Architecture, n_layers: int) -> list[Unit]:
    step = step.model_copy(update={"options": step.options.settled()})
    if step.options.replaces == "mlp":
        if step.targets.modules is not None or step.targets.roles != "all":
            raise ValueError(f"steps.{index}: {step.method} replaces whole MLPs; give layers, not roles or globs")
        layers = target_layers(step.targets, n_layers)
        if not layers:
            raise ValueError(f"steps.{index}: layers is empty; the model has layers 0 to {n_layers - 1}")
        chains = {i: tuple(f"{architecture.layer(i)}.{name}" for name in architecture.mlp) for i in layers}
        return [Unit(step, Group(f"{step.method}.{chain[-1]}", index, i, chain)) for i, chain in chains.items()]
    if step.options.replaces == "attention":
        if step.targets.modules is not None or step.targets.roles != "all":
            raise ValueError(f"steps.{index}: {step.method} replaces whole attentions; give layers, not roles or globs")
        found = {i: f"{architecture.layer(i)}.{architecture.attention}" for i in target_layers(step.targets, n_layers)}
        return [Unit(step, Group(f"{step.method}.{name}", index, i, (name,))) for i, name in found.items()]
    names = target_modules(step.targets, architecture, n_layers)
    return [
        Unit(step, Group(f"{step.method}.{members[0]}", index, layers_of(members, architecture)[-1], members))
        for members in step.options.groups(names, architecture)
    ]


def layers_of(modules: Sequence[str], architecture: Architecture) -> list[int]:
    """The layers some linears are in, ascending."""
    return sorted({place[0] for module in modules if (place := architecture.locate(module)) is not None})


def _refuse_overlaps(units: Sequence[Unit], architecture: Architecture) -> None:
    owner: dict[str, int] = {}
    for unit in units:
        touched = list(unit.group.modules)
        # An MLP or attention as a whole takes the linears inside it, which other steps could name.
        if unit.method.replaces == "mlp":
            touched += [architecture.module(unit.group.layer, role) for role in architecture.mlp_roles]
        elif unit.method.replaces == "attention":
            touched += [architecture.module(unit.group.layer, role) for role in architecture.attention_roles]
        for module in dict.fromkeys(touched):
            if owner.setdefault(module, unit.group.step) != unit.group.step:
                raise ValueError(
                    f"steps.{owner[module]} and steps.{unit.group.step} both replace {module}; "
                    "narrow the targets so that each module has one step"
                )


def evenly(units: Sequence[Unit]) -> list[Unit] | None:
    """The same units with equal shares where a step shares out a budget; None where no step does. Fitted files serve both."""
    even = [unit.method.evenly() for unit in units]
    if not any(even):
        return None
    return [
        unit if method is None else replace(unit, step=unit.step.model_copy(update={"options": method}))
        for unit, method in zip(units, even, strict=True)
    ]


def together(units: Sequence[Unit], artefacts: Sequence[Artefact]) -> list[Method]:
    """Each unit's method, with what the units of a step decide together, such as ranks that share one budget."""
    methods = [unit.method for unit in units]
    for step in {unit.group.step for unit in units}:
        members = [i for i, unit in enumerate(units) if unit.group.step == step]
        groups, found = [units[i].group for i in members], [artefacts[i] for i in members]
        # Any member's method: the options of a step are the same for all its units.
        for i, method in zip(members, methods[members[0]].decide(groups, found), strict=True):
            methods[i] = method
    return methods
