"""How what stands for an MLP reads in the standalone file, and where its tensors come from.

The runtime classes of `compress.nn` hold empty weights and the replaced projection's name, for the sake of loaders that do not
know them. The file has no such loader, so the controls become a line or two; expressions become straight-line code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from torch import nn

from compress.nn import KINDS, WRAPPERS
from compress.nn.linear import LowRankLinear
from compress.plan import ModuleSpec
from compress.source.family import refuse
from compress.source.text import WIDTH, broken, in_place, text
from compress.symbolic.compile import program_from_json, symbolic_options
from compress.symbolic.torch_source import torch_source
from exporters.torch.linears import Source, keywords, meta_state

ZERO = '''\
class ZeroMLP(nn.Module):
    """MLP(x) = 0: the residual stream passes unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) → zeros (B, T, D)"""
        return torch.zeros_like(x)'''

MEAN = '''\
class MeanMLP(nn.Module):
    """MLP(x) = the mean of the original MLP's outputs over the calibration tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.empty(D_MODEL))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) → (B, T, D), the same for every token"""
        return self.mean.expand_as(x)'''


@dataclass(frozen=True)
class Surrogate:
    """`expression` builds it; it needs `code` written out, or the class `inlined` copied from compress."""

    expression: str
    sources: tuple[Source, ...]
    code: str = ""
    inlined: type[nn.Module] | None = None
    symbolic: ModuleSpec | None = None


def surrogate(spec: ModuleSpec, target: str, layer: int) -> Surrogate:
    """What the file has for one replaced MLP. Raises NotImplementedError for a kind that keeps the MLP it replaces."""
    refuse(spec.kind in WRAPPERS, f"{spec.kind!r}, which keeps the MLP it replaces", "kinds that stand alone")
    options: dict[str, Any] = dict(spec.options)
    outer = options.get("outer", "")
    names = meta_state(spec, nn.Identity())

    def sources(renamed: Mapping[str, str] | None = None) -> tuple[Source, ...]:
        pairs = renamed or {name: name for name in names}
        return tuple(Source(f"{target}.{new}", f"{spec.module}.{old}", cast=names[old]) for old, new in pairs.items())

    weight, bias = f"{outer}.weight", f"{outer}.bias"
    match spec.kind:
        case "identity_mlp":
            return Surrogate("nn.Identity()", ())
        case "zero_mlp":
            return Surrogate("ZeroMLP()", (), code=ZERO)
        case "mean_mlp":
            return Surrogate("MeanMLP()", sources({bias: "mean"}), code=MEAN)
        case "affine_mlp":
            expression = f"LowRankLinear(D_MODEL, D_MODEL, rank={options['rank']!r}, bias=True)"
            return Surrogate(expression, sources({"basis": "basis", weight: "weight", bias: "bias"}), inlined=LowRankLinear)
        case "symbolic_mlp":
            kept = ["basis", "offset", *(["low", "high"] if options["clamp"] else [])]
            renamed = {name: name for name in kept} | {
                "program.constants": "constants",
                weight: "outer.weight",
                bias: "outer.bias",
            }
            sizes = {key: str(options[key]) for key in ("inputs", "outputs", "affine", "constants") if options[key]}
            sizes |= {} if options["clamp"] else {"clamp": "False"}
            return Surrogate(f"SymbolicMLP{layer}({keywords(sizes)})", sources(renamed), symbolic=spec)
    cls = KINDS[spec.kind]
    expression = f"{cls.__name__}({keywords({key: repr(value) for key, value in options.items()})})"
    return Surrogate(expression, sources(), inlined=cls)


def symbolic_classes(specs: Mapping[int, ModuleSpec]) -> list[str]:
    """The shared class and one subclass per layer, with the layer's expressions as straight-line code."""
    if not specs:
        return []
    clamped = {bool(spec.options["clamp"]) for spec in specs.values()}
    return [
        _base_class(any(spec.options["affine"] for spec in specs.values()), clamped),
        *(_layer_class(layer, spec) for layer, spec in specs.items()),
    ]


def _base_class(affine: bool, clamped: set[bool]) -> str:
    doc = "MLP(x) = outer(expressions(z)), z = basis @ x + offset"
    if affine:
        doc = "MLP(x) = outer([expressions(z), rest]), [z, rest] = basis @ x + [offset, 0]"
    more = " + affine" * affine
    parameters = ["inputs: int", "outputs: int", *["affine: int = 0"] * affine, "constants: int = 0", "clamp: bool = True"]
    body = [
        *["self.inputs = inputs"] * affine,
        *["self.clamp = clamp"] * (False in clamped),
        f"self.basis = nn.Parameter(torch.empty(inputs{more}, D_MODEL))",
        "self.offset = nn.Parameter(torch.empty(inputs))",
        *_where(clamped, "clamp", [f'self.register_buffer("{name}", torch.empty(inputs))' for name in ("low", "high")]),
        "self.constants = nn.Parameter(torch.empty(constants))",
        f"self.outer = nn.Linear(outputs{more}, D_MODEL)",
    ]
    forward = [
        f"h = F.linear(x, self.basis)  # (B, T, D) → (B, T, inputs{more})",
        f"z = h{'[..., : self.inputs]' * affine}.float() + self.offset",
        *_where(
            clamped,
            "self.clamp",
            [
                "# Outside the calibrated range a closed form may do anything.",
                "z = torch.minimum(torch.maximum(z, self.low), self.high)",
            ],
        ),
        "y = self.expressions(z, self.constants).to(x.dtype)  # (B, T, inputs) → (B, T, outputs)",
        *["y = torch.cat([y, h[..., self.inputs :]], dim=-1)  # (B, T, outputs + affine)"] * affine,
        "return self.outer(y)",
    ]
    if clamped != {True, False}:
        parameters.pop()
    return text(f'''
        class SymbolicMLP(nn.Module):
            """{doc}; the expressions are the layer's own."""

            def __init__({", ".join(["self", *parameters])}) -> None:
                super().__init__()
                {in_place(body, 16)}

            def forward(self, x: Tensor) -> Tensor:
                """x (B, T, D) → (B, T, D)"""
                {in_place(forward, 16)}

            def expressions(self, z: Tensor, c: Tensor) -> Tensor:
                """z (B, T, inputs), constants c → (B, T, outputs)"""
                raise NotImplementedError
        ''')


def _where(clamped: set[bool], condition: str, lines: list[str]) -> list[str]:
    """`lines` where all layers clamp, behind `condition` where some do, nothing where none does."""
    if clamped == {True, False}:
        return [f"if {condition}:", *(f"    {line}" for line in lines)]
    return lines if clamped == {True} else []


def _layer_class(layer: int, spec: ModuleSpec) -> str:
    program = program_from_json(symbolic_options(dict(spec.options))["program"])
    *steps, last = torch_source(program, z="z", constants="c", result="y")
    lines = [part for left, _, right in (line.partition(" = ") for line in steps) for part in _statement(left, right, " = ")]
    lines += _statement("return", last.removeprefix("y = "), " ")
    return "\n".join(
        [
            f"class SymbolicMLP{layer}(SymbolicMLP):",
            f'    """Layer {layer}: {len(program.instructions)} operations on {program.n_inputs} latents."""',
            "",
            "    def expressions(self, z: Tensor, c: Tensor) -> Tensor:",
            *lines,
        ]
    )


def _statement(left: str, right: str, between: str, spaces: int = 8) -> list[str]:
    """`left = right` or `return right`, broken where it is too long."""
    margin = " " * spaces
    if len(one := f"{margin}{left}{between}{right}") <= WIDTH:
        return [one]
    if len(margin + left) > WIDTH // 2:  # the names of many latents
        inner = fill(left, WIDTH, initial_indent=margin + "    ", subsequent_indent=margin + "    ")
        return [f"{margin}(", *inner.splitlines(), f"{margin}){between}{right}"]
    first, *rest = broken(right, spaces)
    if rest:
        return [f"{margin}{left}{between}{first.strip()}", *rest]
    return [f"{margin}{left}{between}(", *_operators(right, spaces + 4), f"{margin})"]


def _operators(expression: str, spaces: int) -> list[str]:
    """An expression broken before its weakest operators, sums before products."""
    margin = " " * spaces
    for operators in ((" + ", " - "), (" * ", " / ")):
        parts, depth, start = [], 0, 0
        for i, letter in enumerate(expression):
            depth += (letter in "([{") - (letter in ")]}")
            if depth == 0 and expression[i : i + 3] in operators:
                parts.append(expression[start:i])
                start = i + 1
        if parts:
            return [margin + part for part in [*parts, expression[start:]]]
    return [margin + expression]


def used_classes(surrogates: Sequence[Surrogate]) -> list[type[nn.Module]]:
    return [item.inlined for item in surrogates if item.inlined is not None]
