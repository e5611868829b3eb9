"""Streaming statistics equal numpy's on the concatenated rows, however the stream is cut, ordered or merged."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.numerics.sample import Sample
from compress.numerics.statistics import CrossMoments, HeadMoments, Moments

D, E, N = 4, 3, 30


def normal(seed, *shape, offset=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset


cuts = st.lists(st.integers(1, N - 1), max_size=6, unique=True).map(sorted)
orders = st.randoms(use_true_random=False)


def parts(rows, where):
    """[(start, rows of the part)] of a stream cut at `where`."""
    edges = [0, *where, len(rows)]
    return [(a, rows[a:b]) for a, b in itertools.pairwise(edges)]


def close(found, expected):
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-10)


def filled(accumulator, pieces):
    for start, rows in pieces:
        accumulator.update(rows, start)
    return accumulator


def check_moments(moments, rows):
    x = rows.double().numpy()
    assert moments.count == len(x)
    close(moments.mean, x.mean(0))
    close(moments.covariance, np.cov(x.T, bias=True))
    close(moments.second_moment, x.T @ x / len(x))


@settings(max_examples=40, deadline=None)
@given(cuts, orders, st.integers(0, 99))
def test_moments_are_numpys_for_any_cut_and_any_order_of_merging(where, order, seed):
    rows = normal(seed, N, D, offset=3)
    pieces = parts(rows, where)
    check_moments(filled(Moments(D), pieces), rows)
    order.shuffle(pieces)
    whole = Moments(D)
    for piece in pieces:
        whole.merge(filled(Moments(D), [piece]))
        whole.covariance  # noqa: B018  reading between merges rescales the accumulator and must not disturb it
    check_moments(whole, rows)


def test_a_large_mean_costs_no_digits():
    """Σx² − n·mean² would lose 12 of 16 digits here; accumulation about the running mean does not."""
    rows = normal(0, N, D)
    moments = filled(Moments(D), parts(rows + 1e6, [7, 19]))
    np.testing.assert_allclose(moments.covariance.numpy(), np.cov(rows.numpy().T, bias=True), rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_any_float_dtype_are_accumulated_in_float64(dtype):
    rows = normal(1, N, D, offset=5).to(dtype)
    check_moments(filled(Moments(D), parts(rows, [11])), rows)


def test_moments_survive_their_tensors_and_go_on():
    rows = normal(2, N, D, offset=2)
    first = filled(Moments(D), [(0, rows[:12])])
    again = Moments.from_tensors({k: v.clone() for k, v in first.tensors().items()})
    check_moments(filled(again, [(12, rows[12:])]), rows)


def test_an_empty_accumulator_merges_as_nothing():
    rows = normal(3, N, D)
    moments = filled(Moments(D), [(0, rows)])
    moments.merge(Moments(D))
    check_moments(moments, rows)


@settings(max_examples=40, deadline=None)
@given(cuts, st.integers(0, 99))
def test_cross_moments_are_numpys_for_any_cut(where, seed):
    x, y = normal(seed, N, D, offset=2), normal(seed + 1, N, E, offset=-7)
    found = CrossMoments(D, E)
    for (_, a), (_, b) in zip(parts(x, where), parts(y, where), strict=True):
        found.update(a, b)
    check_moments(found.input, x)
    close(found.target_mean, y.numpy().mean(0))
    joint = np.cov(np.concatenate([y.numpy(), x.numpy()], axis=1).T, bias=True)
    close(found.cross_covariance, joint[:E, E:])


@settings(max_examples=40, deadline=None)
@given(cuts, orders, st.integers(0, 99))
def test_head_moments_are_numpys_for_any_cut_and_any_order_of_merging(where, order, seed):
    rows = normal(seed, N, 2, D, offset=1)
    expected = np.einsum("nhi,nhj->hij", rows.numpy(), rows.numpy()) / N
    pieces = parts(rows, where)
    close(filled(HeadMoments(2, D), pieces).second_moment, expected)
    order.shuffle(pieces)
    whole = HeadMoments(2, D)
    for piece in pieces:
        whole.merge(filled(HeadMoments(2, D), [piece]))
    assert whole.count == N
    close(whole.second_moment, expected)


@settings(max_examples=40, deadline=None)
@given(cuts, orders, st.integers(1, N), st.integers(0, 99))
def test_a_sample_is_the_same_rows_for_any_cut_and_any_order(where, order, size, seed):
    rows = normal(seed, N, D).float()
    pieces = parts(rows, where)
    index = Sample(size, N, seed).index
    assert len(set(index.tolist())) == size
    order.shuffle(pieces)
    together = filled(Sample(size, N, seed), pieces)
    merged = Sample(size, N, seed)
    for piece in pieces:
        merged.merge(filled(Sample(size, N, seed), [piece]))
    for sample in (together, merged):
        np.testing.assert_array_equal(sample.values.numpy(), rows.double().numpy()[index])


def test_a_sample_holds_at_most_every_row_and_copies_what_it_keeps():
    rows = normal(4, N, D)
    sample = filled(Sample(10 * N, N, 0), [(0, rows)])
    before = rows.clone()
    rows.zero_()
    assert torch.equal(sample.values, before)


def test_every_row_is_drawn_equally_often():
    counts = np.zeros(N)
    for seed in range(600):
        counts[Sample(6, N, seed).index] += 1
    assert abs(counts / 600 - 6 / N).max() < 0.08  # five standard deviations
