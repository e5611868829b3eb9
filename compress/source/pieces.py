"""What the standalone torch file is made of, as a kind describes its share of it: tensors, linears, MLPs, attentions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

Scalar = int | float | bool | str | None


@dataclass(frozen=True)
class Source:
    """One tensor of the standalone file: its name there, its name in the checkpoint, and what happens on the way."""

    name: str
    stored: str
    transposed: bool = False
    part: tuple[slice | int, ...] = (slice(None),)
    cast: bool = True  # to the export's dtype; some parameters are float32 in every dtype


@dataclass(frozen=True)
class LinearSource:
    """How a replaced linear is made in the file: `builds` (d_in, d_out, **options), with tensors by name from `tensors`.

    `options` are the constructor's, the shape and the bias among them; `inlined` is the class that is copied, None for torch's
    own. `optional` are arguments with a default, by name: (annotation, default). `tensors` maps a tensor's name in the file to
    (its name in the checkpoint, the part of it that is meant); empty: all, as they are.
    """

    builds: str
    options: Mapping[str, Scalar]
    inlined: type[nn.Module] | None
    optional: Mapping[str, tuple[str, Scalar]] = field(default_factory=dict)
    tensors: Mapping[str, tuple[str, tuple[slice | int, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class MLPSource:
    """`expression` builds what stands for an MLP; `tensors` maps names in the file to names under the module, None: all.

    `inlined` is a class that is copied; other classes come from `Kind.torch_classes`. `told` is what the file's docstring says.
    """

    expression: str
    tensors: Mapping[str, str] | None
    inlined: type[nn.Module] | None = None
    told: str = ""


@dataclass(frozen=True)
class AttentionSource:
    """How a replaced attention reads: a class of its own, or the stock class with another attention function.

    Of its own: `expression` in the table of layers, `tensors` by name in the file, `without` the roles it has no linears for,
    `float32` the tensors that are so in every dtype. The stock class: `argument`, the value that this layer hands it.
    """

    expression: str = ""
    tensors: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    float32: tuple[str, ...] = ()
    argument: int | None = None


@dataclass(frozen=True)
class Switch:
    """Another attention function inside the stock class, in the layers that have a value for the argument `name`.

    `attend` writes the line that computes y (B, H, T, C) from the texts of the mask and the scale ("" for the usual one).
    """

    name: str
    annotation: str
    attend: Callable[[str, str], str]
    inlined: tuple[Any, ...]


def refuse(condition: object, what: str, supported: str) -> None:
    """Raises NotImplementedError where `condition` holds."""
    if condition:
        raise NotImplementedError(f"the standalone torch file has no {what}; supported: {supported}")
