"""Channel pruning against its theorem: the refit is least squares on what is kept, each step removes the cheapest channel."""

import itertools

import numpy as np
import pytest
import torch

from compress.numerics.pruning import DAMPING, prune


def problem(seed, d_out=3, d_ff=6):
    """weight (d_out, d_ff), covariance and metric, both dense and positive definite, in float64."""
    rng = np.random.default_rng(seed)
    weight, mix, root = rng.normal(size=(d_out, d_ff)), rng.normal(size=(d_ff, d_ff)), rng.normal(size=(d_out, d_out))
    return weight, mix @ mix.T / d_ff, root @ root.T + 0.1 * np.eye(d_out)


def damped(covariance):
    return covariance + DAMPING * covariance.diagonal().mean() * np.eye(len(covariance))


def refit(weight, covariance, kept):
    """Least squares of weight @ h on h[kept], h of this covariance."""
    return np.linalg.solve(covariance[np.ix_(kept, kept)], covariance[kept] @ weight.T).T


def cost(weight, covariance, metric, kept):
    """tr(metric · covariance of the error), after the refit on `kept`."""
    difference = weight.copy()
    difference[:, kept] -= refit(weight, covariance, kept)
    return np.trace(metric @ difference @ covariance @ difference.T)


def greedy(weight, covariance, metric, keep):
    """Remove, one by one, the channel whose removal costs least when all others are refitted: every candidate is tried."""
    kept = list(range(weight.shape[1]))
    while len(kept) > keep:
        kept = min(([k for k in kept if k != gone] for gone in kept), key=lambda left: cost(weight, covariance, metric, left))
    return kept


def pruned(weight, covariance, metric, keep):
    kept, refitted = prune(*(torch.from_numpy(m) for m in (weight, covariance, metric)), keep)
    return kept.tolist(), refitted.numpy()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("keep", [1, 3, 5, 6])
def test_kept_channels_are_those_of_direct_removal_and_the_refit_is_least_squares(seed, keep):
    weight, covariance, metric = problem(seed)
    kept, refitted = pruned(weight, covariance, metric, keep)
    assert kept == greedy(weight, damped(covariance), metric, keep)
    np.testing.assert_allclose(refitted, refit(weight, damped(covariance), kept), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", range(6))
def test_the_first_channel_to_go_is_the_best_of_all_and_more_channels_never_cost_more(seed):
    weight, covariance, metric = problem(seed)
    exact = damped(covariance)
    kept, _ = pruned(weight, covariance, metric, 5)
    best = min(itertools.combinations(range(6), 5), key=lambda k: cost(weight, exact, metric, list(k)))
    assert kept == list(best)
    costs = [cost(weight, exact, metric, pruned(weight, covariance, metric, keep)[0]) for keep in range(1, 7)]
    assert all(less <= more + 1e-12 for more, less in itertools.pairwise(costs))


def test_the_refit_is_least_squares_on_rows():
    rng = np.random.default_rng(9)
    rows = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6))
    rows -= rows.mean(0)
    weight = rng.normal(size=(3, 6))
    kept, refitted = pruned(weight, rows.T @ rows / 400, np.eye(3), 4)
    expected = np.linalg.lstsq(rows[:, kept], rows @ weight.T, rcond=None)[0].T
    np.testing.assert_allclose(refitted, expected, rtol=1e-3, atol=1e-3)  # the ridge of 1e-6 is all that differs


def test_a_channel_that_others_repeat_goes_first_and_costs_nothing():
    weight, covariance, metric = problem(10)
    covariance += np.eye(6)  # well-conditioned, so that the ridge hardly shows
    again = np.r_[np.arange(6), 2]  # channel 6 copies channel 2
    kept, refitted = pruned(np.c_[weight, [3.0, 4.0, 5.0]], covariance[np.ix_(again, again)], metric, 6)
    assert (2 in kept) != (6 in kept)
    merged = weight.copy()
    merged[:, 2] += [3.0, 4.0, 5.0]
    np.testing.assert_allclose(refitted[:, np.argsort([again[k] for k in kept])], merged, rtol=1e-4, atol=1e-4)


def test_the_metric_decides_which_output_counts():
    """Channel k alone makes output k: the outputs of least weight in the loss lose theirs."""
    metric = np.diag([5.0, 1.0, 4.0, 2.0])
    assert pruned(np.eye(4), np.eye(4), metric, 2)[0] == [0, 2]


def test_channels_that_never_fired_are_no_obstacle():
    kept, refitted = pruned(np.ones((2, 4)), np.zeros((4, 4)), np.eye(2), 2)
    assert len(kept) == 2
    assert np.isfinite(refitted).all()
