"""What methods that replace an MLP have in common: its sizes, its place, the moments they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from compress.architecture import Architecture
from compress.kinds.affine_mlp import Affine
from compress.kinds.contract import Kind
from compress.kinds.mean_mlp import Mean
from compress.kinds.pass_through import Through
from compress.methods.base import Group, Material, Method, Need, Replacement
from compress.methods.linear._low_rank import GRADIENT_DAMPING
from compress.numerics.conventions import balanced, damped
from compress.numerics.reduced_rank import Fit
from compress.numerics.statistics import Moments
from compress.plan import ModuleSpec


class MLPMethod(Method):
    """A method that replaces whole MLPs: layers can be chosen for it, by the multiply-adds they save."""

    replaces = "mlp"
    saves = "multiply-adds of the MLPs"

    def layer_cost(
        self, made: Replacement, layer: int, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture
    ) -> tuple[int, int]:
        """Every entry of a matrix once per token, every operation of a program once."""
        original = (shapes[f"{architecture.module(layer, role)}.weight"] for role in architecture.mlp_roles)
        before = sum(map(_entries, original))
        # No specs: pruning that keeps every channel leaves the MLP as it is.
        after = before if not made.specs else sum(_entries(tuple(t.shape)) for t in made.tensors.values())
        return before, after + sum(row.get("operations", 0) for row in made.report)


def _entries(shape: tuple[int, ...]) -> int:
    """Multiply-adds of a matrix; vectors are added, not multiplied."""
    return shape[0] * shape[1] if len(shape) == 2 else 0


def mlp_parameters(group: Group, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Parameters of the modules of an MLP group, biases included."""
    inside = [s for name, s in shapes.items() if any(name.startswith(m + ".") for m in group.modules)]
    return sum(int(torch.Size(s).numel()) for s in inside)


def parameters_before(material: Material) -> int:
    """The same of an MLP that is about to be replaced, from its weights."""
    prefixes = tuple(f"{module}." for module in material.group.modules)
    return sum(t.numel() for name, t in material.weights.items() if name.startswith(prefixes))


def affine_needs(group: Group, importance: str) -> dict[str, Need]:
    """The joint moments of an MLP's input and output, and those of the loss gradient at its output."""
    first, last = group.modules[0], group.modules[-1]
    gradient = {"gradient": Need(last, statistic="gradient")} if importance == "fisher" else {}
    return {"moments": Need(first, last), **gradient}


def output_metric(material: Material) -> Tensor:
    """Damped second moment of the loss gradient at the MLP's output (d_model, d_model); the identity where it was not asked."""
    moments = material.statistics.get("gradient")
    if moments is None:
        # The moments are joint, of an input and an output of the same width.
        width = cast(Moments, material.statistics["moments"]).mean.shape[0] // 2
        return torch.eye(width, dtype=torch.float64)
    # empty: the loss felt nothing of this MLP
    return damped(cast(Moments, moments).second_moment, GRADIENT_DAMPING, empty=1.0)


def affine_replacement(group: Group, fit: Fit, row: Mapping[str, Any], architecture: Architecture) -> Replacement:
    """The Plan's part for y = left @ right @ x + bias; the mean MLP at rank 0."""
    module, outer = group.modules[-1], architecture.mlp_outer
    width, rank = fit.left.shape
    kind = Affine(outer=outer, d_model=width, rank=rank) if rank else Mean(outer=outer, d_model=width)
    tensors = {f"{outer}.bias": fit.bias}
    if rank:
        left, right = balanced(fit.left, fit.right)
        tensors |= {f"{outer}.weight": left, "basis": right}
    else:
        # Rank 0 has nothing to multiply; the empty weight keeps a loader that does not know us from filling one in.
        tensors[f"{outer}.weight"] = torch.empty(0, dtype=torch.float64)
    specs = mlp_chain(group, kind)
    named = {f"{module}.{name}": tensor for name, tensor in tensors.items()}
    numbers = sum(t.numel() for t in tensors.values())
    report = {
        "module": module,
        "kind": kind.kind,
        "rank": rank,
        "parameters": numbers,
        "multiply_adds": 2 * rank * width,
        **row,
    }
    return Replacement(specs, {**chain_tensors(group), **named}, group.modules, (report,))


def d_model(group: Group, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> int:
    """The width of the residual stream, from the shape of the down-projection."""
    return shapes[f"{architecture.module(group.layer, 'down')}.weight"][1 if architecture.conv1d else 0]


def mlp_chain(group: Group, kind: Kind) -> tuple[ModuleSpec, ...]:
    """`kind` for the MLP of a layer; where that runs its MLP inline, the inner modules pass through to the last one."""
    *inner, last = group.modules
    # Of an inline MLP only the first module's weight has its place held; see `chain_tensors`.
    return (*(Through(occupied=position == 0).spec(name) for position, name in enumerate(inner)), kind.spec(last))


def chain_tensors(group: Group) -> dict[str, Tensor]:
    """The empty weight that holds the place of an inline MLP's first linear."""
    return {f"{group.modules[0]}.weight": torch.empty(0, dtype=torch.float64)} if len(group.modules) > 1 else {}
