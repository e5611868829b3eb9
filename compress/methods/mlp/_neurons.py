"""An MLP's own neurons as closed forms of its input, those that an affine map misses most."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.methods.base import Material
from compress.numerics.linalg import symmetric_sqrt
from compress.numerics.pruning import prune
from compress.regression.front import Candidate, Front
from compress.symbolic.activation import FORMS, recognise, with_input
from compress.symbolic.compile import compile_program
from compress.symbolic.evaluate import evaluate_numpy
from compress.symbolic.expression import complexity
from compress.symbolic.operations import Tree


def neurons(material: Material, x: Tensor, metric: Tensor, count: int) -> tuple[Tensor, Tensor, list[Front]]:
    """The `count` neurons that an affine map misses most, as what they read and their own formulas: (basis (inputs, d_model),
    offset (inputs,), one front of one exact expression each).

    Chosen as `prune` does, on what the regression on the MLP's input leaves of every neuron over the rows x (n, d_model).
    """
    architecture, layer = material.architecture, material.group.layer
    name, tree = _activation(material)
    # All that read the MLP's input: gate and up, both in one, or a single projection.
    parts = [material.linear(architecture.module(layer, role)) for role in architecture.mlp_roles[:-1]]
    reads = [(w, torch.zeros(len(w), dtype=torch.float64) if b is None else b) for w, b in parts]
    if "gate_up" in architecture.mlp_roles:
        # Fused: the gate's rows, then those of up.
        reads = [(w, b) for w, b in zip(reads[0][0].chunk(2), reads[0][1].chunk(2), strict=True)]
    program = compile_program([tree], 1, 0)
    # A program of one input: (n, d_ff) goes through as (n · d_ff, 1).
    hidden = torch.from_numpy(evaluate_numpy(program, (x @ reads[0][0].T + reads[0][1]).numpy().reshape(-1, 1), []))
    hidden = hidden.reshape(len(x), -1)
    # A gated neuron is act(gate) · up.
    for weight, bias in reads[1:]:
        hidden = hidden * (x @ weight.T + bias)
    centred_x, centred = x - x.mean(dim=0), hidden - hidden.mean(dim=0)
    _, inverse = symmetric_sqrt(centred_x.T @ centred_x / len(x))
    # What least squares on x leaves of each neuron, (n, d_ff); inverse @ inverse is C⁻¹.
    rest = centred - centred_x @ (inverse @ inverse @ (centred_x.T @ centred / len(x)))
    down, _ = material.linear(architecture.module(layer, "down"))
    kept, _ = prune(down, rest.T @ rest / len(x), metric, count)
    basis = torch.cat([w[kept] for w, _ in reads])  # gate 0, gate 1, …, up 0, up 1, …: runtimes read blocks fastest
    offset = torch.cat([b[kept] for _, b in reads])
    fronts = []
    for k in range(count):
        # Neuron k reads row k of the gate's block and row k of up's.
        first, *others = range(k, count * len(reads), count)
        own = with_input(tree, first)
        formula = ["mul", own, *(["var", i] for i in others)] if others else own
        # The formula is the neuron itself: it has no loss.
        fronts.append(Front((Candidate(formula, (), complexity(formula), 0.0, 0.0, f"neuron ({name})"),)))
    return basis, offset, fronts


def _activation(material: Material) -> tuple[str, Tree]:
    """The MLP's activation function in closed form, found by its values."""
    prefix = material.architecture.layer(material.group.layer) + "."
    seen = []
    for module in (material.layer.get_submodule(name.removeprefix(prefix)) for name in material.group.modules):
        for inner in module.modules():
            # An activation function has no parts and no parameters; nor has dropout, which is the identity in eval mode.
            if [*inner.children(), *inner.parameters()] or isinstance(inner, nn.Dropout):
                continue
            seen.append(type(inner).__name__)
            if (found := recognise(inner)) is not None:
                return found
    raise ValueError(
        f"{material.group.modules[-1]}: kind: neurons knows the activations {', '.join(FORMS)}; this MLP has {seen}; "
        "use kind: gradient"
    )
