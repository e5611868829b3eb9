"""Reduced-rank regression with extra regressors, against numpy's least squares and a search over all maps of that rank."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch

from compress.numerics.reduced_rank import extend, measured, solve
from compress.numerics.statistics import Moments

N, D, K, E = 400, 5, 2, 4


def problem(seed=0):
    """x (N, D), f (N, K), y (N, E), metric (E, E); f depends on x, y on both, nothing exactly."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) + 2
    f = np.c_[np.sin(x[:, 0]), 0.1 * x[:, 1] * x[:, 2]] + 1
    y = x @ rng.normal(size=(D, E)) + 3 * f @ rng.normal(size=(K, E)) + rng.normal(size=(N, E)) - 4
    root = rng.normal(size=(E, E))
    return x, f, y, root @ root.T + 0.1 * np.eye(E)


def tensors(*arrays):
    return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]


def predicted(fit, x, f):
    return x @ (fit.left @ fit.right).numpy().T + f @ fit.direct.numpy().T + fit.bias.numpy()


def loss(residual, metric):
    return float(((residual @ metric) * residual).sum(1).mean())


def fitted(rank, features=True):
    x, f, y, metric = problem()
    f = f if features else f[:, :0]
    joint = measured(*tensors(x, y, f))
    return x, f, y, metric, joint, solve(joint, torch.from_numpy(metric), rank)


@pytest.mark.parametrize("features", [True, False])
def test_at_full_rank_it_is_least_squares(features):
    x, f, y, _, _, fit = fitted(4, features)
    design = np.c_[np.ones(N), x, f]
    np.testing.assert_allclose(predicted(fit, x, f), design @ np.linalg.lstsq(design, y, rcond=None)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 4])
def test_the_error_it_says_is_the_error_on_the_rows(rank):
    x, f, y, metric, joint, fit = fitted(rank)
    assert joint.error(fit, torch.from_numpy(metric)) == pytest.approx(loss(y - predicted(fit, x, f), metric), rel=1e-9)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_the_loss_is_the_theorems(rank):
    """Velu & Reinsel 1998: what least squares leaves, plus the discarded eigenvalues of the explained part of y, after f is
    partialled out of both sides (Frisch–Waugh)."""
    x, f, y, metric, _, fit = fitted(rank)

    def residual(a, *regressors):
        design = np.c_[np.ones(N), *regressors]
        return a - design @ np.linalg.lstsq(design, a, rcond=None)[0]

    rest_x, rest_y = residual(x, f), residual(y, f)
    explained = rest_x @ np.linalg.lstsq(rest_x, rest_y, rcond=None)[0]
    root = np.real(scipy.linalg.sqrtm(metric))
    discarded = (np.linalg.svd(explained @ root, compute_uv=False)[rank:] ** 2).sum() / N
    expected = loss(residual(y, x, f), metric) + discarded
    assert loss(y - predicted(fit, x, f), metric) == pytest.approx(expected, rel=1e-5)


def test_no_map_of_that_rank_that_a_search_finds_is_better():
    x, f, y, metric, _, fit = fitted(1)
    ones = np.ones((N, 1))

    def of(parameters):
        left, right = parameters[:E], parameters[E : E + D]
        rest = parameters[E + D :].reshape(E, K + 1)
        return loss(y - np.outer(x @ right, left) - np.c_[f, ones] @ rest.T, metric)

    at = np.concatenate([fit.left.numpy()[:, 0], fit.right.numpy()[0], np.c_[fit.direct.numpy(), fit.bias.numpy()].ravel()])
    rng = np.random.default_rng(1)
    searched = [scipy.optimize.minimize(of, at + rng.normal(size=len(at)) * s).fun for s in (0.0, 0.3, 3.0)]
    assert of(at) <= min(searched) * (1 + 1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_more_regressors_and_more_rank_never_cost(rank):
    x, f, y, metric, _, fit = fitted(rank)
    *_, bare = fitted(rank, features=False)
    *_, wider = fitted(rank + 1)
    with_f = loss(y - predicted(fit, x, f), metric)
    assert with_f < loss(y - predicted(bare, x, f[:, :0]), metric)
    assert loss(y - predicted(wider, x, f), metric) < with_f


def moments(x, y):
    out = Moments(D + E)
    out.update(torch.cat([x, y], dim=1))
    return out


def test_extended_by_a_sample_of_all_rows_it_is_what_was_measured():
    x, f, y = tensors(*problem()[:3])
    found, expected = extend(moments(x, y), x, y, f), measured(x, y, f)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-6, atol=1e-6)


def test_extended_by_a_part_x_and_y_are_exact_and_the_rest_is_a_covariance():
    x, f, y = tensors(*problem()[:3])
    joint = extend(moments(x, y), x[:60], y[:60], f[:60])
    outer = [*range(D), *range(D + K, D + K + E)]
    both = np.c_[x.numpy(), y.numpy()]
    np.testing.assert_allclose(joint.covariance.numpy()[np.ix_(outer, outer)], np.cov(both.T, bias=True), rtol=1e-10)
    np.testing.assert_allclose(joint.mean.numpy()[outer], both.mean(0), rtol=1e-10)
    values = np.linalg.eigvalsh(joint.covariance.numpy())
    assert values[0] > -1e-9 * values[-1]


def test_features_linear_in_x_are_exact_from_any_part():
    """What a feature inherits from x comes from all rows: here that is everything."""
    x, _, y = tensors(*problem()[:3])
    f = x @ torch.from_numpy(np.random.default_rng(2).normal(size=(D, K))) + 1
    found, expected = extend(moments(x, y), x[:40], y[:40], f[:40]), measured(x, y, f)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-5, atol=1e-5)


def test_keep_is_the_measurement_without_the_others():
    x, f, y = tensors(*problem()[:3])
    kept, expected = measured(x, y, f).keep([1]), measured(x, y, f[:, 1:])
    torch.testing.assert_close(kept.covariance, expected.covariance)
    torch.testing.assert_close(kept.mean, expected.mean)
    assert (kept.inputs, kept.features) == (D, 1)
