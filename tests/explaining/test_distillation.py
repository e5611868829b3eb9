"""Distillation finds what a callable computes, in every form: fronts, sympy, torch."""

import numpy as np
import pytest
import sympy
import torch
from torch import nn

from compress import distill
from compress.regression.options import EngineOptions

SPARSE = EngineOptions(name="sparse", terms=8)
X = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))


def products(x):
    return torch.stack([x[..., 0] * x[..., 1] - 2 * x[..., 2], x[..., 2] ** 2 + 1], dim=-1)


def test_torch_sympy_and_the_function_agree_on_new_rows():
    found = distill(products, X, SPARSE)
    new = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    expected = products(new)
    torch.testing.assert_close(found.module()(new), expected, rtol=1e-4, atol=1e-4)
    names = [sympy.Symbol(f"x{i}", real=True) for i in range(3)]
    for k, expression in enumerate(found.sympy()):
        values = [float(expression.subs(dict(zip(names, row.tolist(), strict=True)))) for row in new[:5]]
        np.testing.assert_allclose(values, expected[:5, k], rtol=1e-4, atol=1e-4)
    assert len(found.text()) == len(found.latex()) == 2


def test_its_constants_can_be_trained():
    module = distill(products, X, SPARSE).module()
    module(X).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_shapes_are_flattened_and_a_module_is_used_in_eval_mode_and_left_as_it_was():
    module = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.9)).train()
    whole = distill(module, X.view(20, 30, 3), SPARSE)
    parts = distill(module, [X[:300], X[300:]], SPARSE)
    assert whole.fronts == parts.fronts
    assert module.training
    assert all(c.held_out_loss < 1e-6 for c in whole.candidates)


def test_picking_by_hand():
    found = distill(products, X, SPARSE).pick(1, 1)
    assert found.candidates[1].complexity == 1
    assert found.candidates[0].complexity > 1


def test_what_is_not_row_by_row_is_refused():
    with pytest.raises(ValueError, match=r"same leading sizes: wrap it in a function"):
        distill(lambda x: x.sum(dim=0), X, SPARSE)
