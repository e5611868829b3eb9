"""One cell of the matrix: a method with one of its examples, or a kind, on one architecture; and where it is exempt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from checkpoints import ATTENTION_KINDS, LAYERS, LINEAR_KINDS, MLP_KINDS, SHARED_KINDS

from compress import kinds, methods
from compress.architecture import ARCHITECTURES

PLANS = (*LINEAR_KINDS, *ATTENTION_KINDS, *MLP_KINDS)  # what `random_plan` knows


@dataclass(frozen=True, order=True)
class Case:
    """`method`: a fit of the method with `examples[example]`. `kind`: a random plan of that name, nothing fitted."""

    what: Literal["method", "kind"]
    name: str
    example: int
    architecture: str
    layers: int = LAYERS

    def __str__(self) -> str:
        return (
            f"{self.name}[{self.example}] {self.architecture}" if self.what == "method" else f"{self.name} {self.architecture}"
        )

    @property
    def options(self) -> Mapping[str, Any]:
        """Of a method: the options of its example."""
        return methods.load(self.name).examples[self.example]

    @property
    def declared(self) -> Mapping[str, str]:
        """What the contract is exempt from: {check: reason}, {"check:architecture": reason} or {"*:architecture": reason}."""
        return methods.load(self.name).exempt if self.what == "method" else kinds.load(_kind_of(self.name)).exempt

    def of_layers(self, layers: int) -> Case:
        return replace(self, layers=layers)


def _kind_of(plan: str) -> str:
    return "shared_linear" if plan in SHARED_KINDS else plan


def plans_of(kind: str) -> tuple[str, ...]:
    """The random plans of a kind of the registry; none for kinds of other packages, which are reached through their methods,
    and for those that only hold a place.
    """
    return tuple(plan for plan in PLANS if _kind_of(plan) == kind)


def method_cases() -> Iterator[Case]:
    """Every method of the registry, every example of it, every architecture."""
    for name in methods.names():
        for example in range(len(methods.load(name).examples)):
            yield from (Case("method", name, example, row) for row in ARCHITECTURES)


def kind_cases() -> Iterator[Case]:
    """Every kind of the registry that has a random plan, every architecture."""
    for plan in (plan for kind in kinds.names() for plan in plans_of(kind)):
        yield from (Case("kind", plan, 0, row) for row in ARCHITECTURES)


def names_what_is_supported(message: str, architecture: str) -> bool:
    """Whether a refusal says what would be accepted: another architecture, or a list behind one of these words."""
    others = (row for row in ARCHITECTURES if row != architecture)
    return any(word in message for word in ("supported: ", "allowed: ", *(f"{row}," for row in others)))
