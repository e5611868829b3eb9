"""Activation functions in closed form, recognised by their values: what a neuron of an MLP is as an expression."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor

from compress.symbolic.compile import compile_program
from compress.symbolic.evaluate import evaluate_numpy
from compress.symbolic.expression import fold, tree_children
from compress.symbolic.operations import LEAVES, Tree, apply

_TOLERANCE = 1e-5  # of float32 functions on [−8, 8]; tanh-GELU and GELU differ by 5e-4
_X: Tree = ["var", 0]
_HALF: Tree = ["rational", 1, 2]


def _half_of(x: Tree, squashed: Tree) -> Tree:
    """½ x (1 + squashed): with tanh and erf nothing can overflow, as exp in a sigmoid can."""
    return ["mul", _HALF, x, ["add", ["int", 1], squashed]]


def _gelu_tanh(x: Tree) -> Tree:
    # The tanh form of GELU of Hendrycks and Gimpel, arXiv:1606.08415: x + 0.044715 x³, times √(2/π), within the tanh.
    cubic = ["add", x, ["mul", ["rational", 44715, 1000000], x, x, x]]
    return _half_of(x, ["tanh", ["mul", ["sqrt", ["mul", ["int", 2], ["reciprocal", _PI]]], cubic]])


# π = 4 arctan 1. Trees hold whole numbers and fractions only; a decimal would be a parameter, which a fit may move.
_PI: Tree = ["mul", ["int", 4], ["atan", ["int", 1]]]
FORMS: dict[str, Tree] = {
    # σ(x) = ½ (1 + tanh(x / 2)): SiLU, x σ(x), and quick GELU, x σ(1.702 x), are halves as well.
    "silu": _half_of(_X, ["tanh", ["mul", _HALF, _X]]),
    "gelu": _half_of(_X, ["erf", ["mul", ["reciprocal", ["sqrt", ["int", 2]]], _X]]),
    "gelu_tanh": _gelu_tanh(_X),
    "quick_gelu": _half_of(_X, ["tanh", ["mul", ["rational", 851, 1000], _X]]),
    "relu": apply("relu", _X),
    "tanh": ["tanh", _X],
}


def recognise(function: Callable[[Tensor], Tensor]) -> tuple[str, Tree] | None:
    """(name, tree over input 0) of the known activation that `function` equals on [−8, 8]; None where it is none of them."""
    # Steps of 0.05 through 0: the kink of a ReLU is one of the points.
    grid = torch.linspace(-8, 8, 321)
    with torch.no_grad():
        values = function(grid)
    # A model's own module may give anything, whatever it is declared to give.
    if not isinstance(cast(object, values), Tensor) or values.shape != grid.shape:
        return None
    # By values, not by class or name: libraries have many classes for one function, and one name for several.
    for name, tree in FORMS.items():
        form = evaluate_numpy(compile_program([tree], 1, 0), grid.double().numpy()[:, None], [])[:, 0]
        if np.abs(form - values.double().numpy()).max() < _TOLERANCE:
            return name, tree
    return None


def with_input(tree: Tree, index: int) -> Tree:
    """The same tree over input `index` instead of input 0."""

    def visit(node: Tree, args: list[Tree]) -> Tree:
        if node[0] == "var":
            return ["var", index]
        return node if node[0] in LEAVES else [node[0], *args]

    return fold(tree, tree_children, visit)
