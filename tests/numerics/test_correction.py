"""Regression on changed inputs: least squares at λ = 0, the error it says is the error there is, and it never loses."""

import math

import numpy as np
import pytest
import torch

from compress.numerics.correction import SHRINKAGES, Regression, Target
from compress.numerics.statistics import CrossMoments


def rows(seed, count, massive=0.0):
    """(x, x') with x' a distorted x of large mean; `massive` makes one dimension of every 32nd row enormous."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(12, 12, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    x = torch.randn(count, 12, generator=generator, dtype=torch.float64) @ mix + 5
    x[::32, 3] += massive
    return x, x + 0.3 * torch.randn(count, 12, generator=generator, dtype=torch.float64) - 0.2 * x.roll(1, 1)


def moments(x, changed):
    out = CrossMoments(12, 12)
    half = len(x) // 2
    out.update(changed[:half], x[:half])
    out.update(changed[half:], x[half:])
    return out


@pytest.fixture
def target():
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    weight = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    return Target(weight, torch.randn(7, generator=generator, dtype=torch.float64), root @ root.T)


@pytest.mark.parametrize("free_bias", [True, False])
def test_without_shrinkage_it_is_least_squares(target, free_bias):
    x, changed = rows(0, 400)
    weight, bias = Regression(moments(x, changed), moments(x, changed), free_bias).at(target, 0.0)
    wanted = (x @ target.weight.T + target.bias).numpy()
    design = np.column_stack([changed.numpy(), np.ones(len(x))]) if free_bias else changed.numpy()
    expected = np.linalg.lstsq(design, wanted if free_bias else wanted - target.bias.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(weight.numpy(), expected[:, :12], rtol=0, atol=1e-8)
    np.testing.assert_allclose(bias.numpy(), expected[:, 12] if free_bias else target.bias.numpy(), rtol=0, atol=1e-7)


def test_error_is_the_squared_error_less_a_constant(target):
    x, changed = rows(2, 300)
    found = moments(x, changed)
    generator = torch.Generator().manual_seed(3)

    def both():
        weight = torch.randn(7, 12, generator=generator, dtype=torch.float64)
        bias = torch.randn(7, generator=generator, dtype=torch.float64)
        miss = x @ target.weight.T + target.bias - changed @ weight.T - bias
        return target.error(weight, bias, found), float(((miss @ target.metric) * miss).sum(1).mean())

    differences = [said - brute for said, brute in (both() for _ in range(4))]
    np.testing.assert_allclose(differences, differences[0], rtol=1e-9)


@pytest.mark.parametrize("massive", [0.0, 1e4])
@pytest.mark.parametrize("count", [14, 2000])
@pytest.mark.parametrize("free_bias", [True, False])
def test_the_chosen_correction_is_no_worse_on_held_out_rows(target, count, massive, free_bias):
    fitted_on, held_out = moments(*rows(4, count, massive)), moments(*rows(5, 500, massive))
    regression = Regression(fitted_on, held_out, free_bias)
    shrinkage, weight, bias = regression.best(target)
    tried = [target.error(*regression.at(target, each), held_out) for each in (*SHRINKAGES, math.inf)]
    assert target.error(weight, bias, held_out) == min(tried)
    assert target.error(weight, bias, held_out) <= target.error(target.weight, target.bias, held_out)
    assert count == 14 or shrinkage < math.inf  # enough rows: the regression pays


def test_inputs_that_did_not_change_leave_the_weights(target):
    x, _ = rows(6, 300)
    _, weight, bias = Regression(moments(x, x), moments(*rows(7, 300)[:1] * 2), True).best(target)
    torch.testing.assert_close(weight, target.weight, rtol=0, atol=1e-9)
    torch.testing.assert_close(bias, target.bias, rtol=0, atol=1e-7)


def test_nothing_read_is_nothing_changed(target):
    zero = torch.zeros(60, 12, dtype=torch.float64)
    assert Regression(moments(zero, zero), moments(zero, zero), False).best(target)[0] == math.inf
