"""Signs, scales and dampings: each does what it says and changes nothing else, against numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.numerics.conventions import balanced, damped, damping, signed
from compress.numerics.linalg import largest_first, principal_components


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dim", [0, 1])
def test_the_sign_of_a_vector_does_not_depend_on_the_one_it_came_with(dim):
    vectors = normal(0, 7, 5)
    flips = torch.sign(normal(1, *((1, 5) if dim == 0 else (7, 1))))
    found = signed(vectors, dim)
    assert not torch.equal(vectors * flips, vectors)
    assert torch.equal(signed(vectors * flips, dim), found)
    assert torch.equal(found.abs(), vectors.abs())
    largest = np.take_along_axis(found.numpy(), np.abs(found.numpy()).argmax(axis=dim, keepdims=True), axis=dim)
    assert (largest > 0).all()


def test_rows_are_the_columns_of_the_transpose_and_zeros_stay():
    vectors = normal(2, 6, 4)
    vectors[:, 2] = 0
    assert torch.equal(signed(vectors.T, dim=1), signed(vectors).T)
    assert not signed(vectors)[:, 2].any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.floats(-8, 8), st.integers(0, 999))
def test_balanced_factors_have_the_same_product_and_equal_norms(d_out, d_in, rank, exponent, seed):
    left, right = normal(seed, d_out, rank) * 10**exponent, normal(seed + 1, rank, d_in)
    a, b = balanced(left, right)
    np.testing.assert_allclose((a @ b).numpy(), (left @ right).numpy(), rtol=1e-10, atol=1e-12 * float(left.abs().max()))
    np.testing.assert_allclose(np.linalg.norm(a.numpy(), axis=0), np.linalg.norm(b.numpy(), axis=1), rtol=1e-10)


def test_a_zero_component_stays_finite():
    left, right = normal(3, 4, 3), normal(4, 3, 5)
    left[:, 1], right[2] = 0, 0
    a, b = balanced(left, right)
    assert torch.isfinite(a).all()
    assert torch.isfinite(b).all()
    torch.testing.assert_close(a @ b, left @ right)


def test_damping_moves_every_eigenvalue_by_a_share_of_their_mean():
    root = normal(5, 6, 6)
    metric = root @ root.T
    before = metric.clone()
    moved = damped(metric, 0.25)
    assert torch.equal(metric, before)  # out of place
    values = np.linalg.eigvalsh(metric.numpy())
    np.testing.assert_allclose(np.linalg.eigvalsh(moved.numpy()), values + 0.25 * values.mean(), rtol=1e-10)
    metric.diagonal().add_(damping(metric, 0.25))  # the form without a copy
    assert torch.equal(metric, moved)
    torch.testing.assert_close(damped(1e6 * before, 0.25), 1e6 * moved)  # units do not matter


def test_a_metric_that_measured_nothing():
    zero = torch.zeros(3, 3, dtype=torch.float64)
    assert torch.equal(damped(zero, 0.1), zero)
    assert torch.equal(damped(zero, 0.1, empty=1.0), torch.eye(3, dtype=torch.float64))


def test_principal_components_are_the_eigenvectors_largest_first():
    x = normal(6, 50, 5) @ normal(7, 5, 5)
    covariance = torch.cov(x.T)
    components, variances = principal_components(covariance)
    expected = np.linalg.svd((x - x.mean(0)).numpy(), compute_uv=False) ** 2 / 49
    np.testing.assert_allclose(variances.numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(torch.cov((x @ components).T).numpy(), np.diag(expected), atol=1e-10 * expected[0])
    vectors, values = largest_first(covariance)
    torch.testing.assert_close(vectors * values @ vectors.T, covariance)


def test_a_variance_that_rounding_made_negative_is_zero():
    row = normal(8, 1, 40) * 1e3
    assert float(principal_components(row.T @ row)[1].min()) >= 0
