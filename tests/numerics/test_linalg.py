"""The decompositions against their theorems and against numpy/scipy, in float64."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.numerics.linalg import MAX_GROWTH, factorize, pivoted, symmetric_sqrt
from compress.numerics.rank import parameters


def problem(seed: int, d_out: int, d_in: int, n: int = 200):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d_in, d_in, generator=generator, dtype=torch.float64)
    x = torch.randn(n, d_in, generator=generator, dtype=torch.float64) @ mixing + 3.0
    weight = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    root = torch.randn(d_out, d_out, generator=generator, dtype=torch.float64)
    return weight, x, root @ root.T / d_out


shapes = pytest.mark.parametrize(("d_out", "d_in"), [(6, 9), (9, 6), (7, 7)])


@shapes
def test_centred_error_equals_the_sum_of_the_discarded_eigenvalues(d_out, d_in):
    weight, x, _ = problem(0, d_out, d_in)
    mean = x.mean(0)
    covariance = torch.cov(x.T, correction=0)
    result = factorize(weight, covariance)
    eigenvalues = np.linalg.eigvalsh((weight @ covariance @ weight.T).numpy())[::-1]
    for rank in range(1, min(d_out, d_in)):
        w, b = result.truncate(rank)
        bias = weight @ mean - w @ (b @ mean)
        error = ((x @ weight.T) - (x @ b.T @ w.T + bias)).square().sum(1).mean()
        assert float(error) == pytest.approx(eigenvalues[rank:].sum(), rel=1e-6)
        assert float(error) == pytest.approx(float(result.spectrum[rank:].sum()), rel=1e-6)


@shapes
def test_plain_svd_is_numpys(d_out, d_in):
    weight, _, _ = problem(1, d_out, d_in)
    u, s, vh = np.linalg.svd(weight.numpy(), full_matrices=False)
    left, right = factorize(weight).truncate(3)
    np.testing.assert_allclose((left @ right).numpy(), u[:, :3] * s[:3] @ vh[:3], atol=1e-9)


@shapes
def test_uncentred_feature_space_is_the_whitened_svd(d_out, d_in):
    weight, x, _ = problem(2, d_out, d_in)
    second = x.T @ x / x.shape[0]
    cholesky = np.linalg.cholesky(second.numpy())
    u, s, vh = np.linalg.svd(weight.numpy() @ cholesky, full_matrices=False)
    whitened = u[:, :4] * s[:4] @ vh[:4] @ np.linalg.inv(cholesky)
    left, right = factorize(weight, second).truncate(4)
    np.testing.assert_allclose((left @ right).numpy(), whitened, rtol=1e-6, atol=1e-6)


@shapes
def test_loss_weighted_minimises_the_weighted_error(d_out, d_in):
    weight, x, g = problem(3, d_out, d_in)
    c = x.T @ x / x.shape[0]
    g_root, c_root = (torch.from_numpy(np.real(scipy.linalg.sqrtm(m.numpy()))) for m in (g, c))
    singular = torch.linalg.svdvals(g_root @ weight @ c_root)
    result = factorize(weight, c, g)
    for rank in (1, 3, 5):
        left, right = result.truncate(rank)
        difference = weight - left @ right
        error = torch.trace(g @ difference @ c @ difference.T)
        assert float(error) == pytest.approx(float(singular[rank:].square().sum()), rel=1e-5)


@shapes
def test_full_rank_is_the_matrix_and_error_is_monotone(d_out, d_in):
    weight, x, g = problem(4, d_out, d_in)
    result = factorize(weight, torch.cov(x.T), g)
    left, right = result.truncate(result.max_rank)
    torch.testing.assert_close(left @ right, weight, rtol=1e-6, atol=1e-8)
    errors = [result.relative_error(r) for r in range(result.max_rank + 1)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(1.0)


def test_a_singular_covariance_is_no_obstacle():
    weight, x, _ = problem(5, 9, 6, n=3)  # 3 rows in 6 dimensions
    result = factorize(weight, x.T @ x / 3)
    left, right = result.truncate(3)
    torch.testing.assert_close(x @ (left @ right).T, x @ weight.T, rtol=1e-4, atol=1e-6)


def test_non_finite_input_is_named():
    with pytest.raises(ValueError, match="input_metric has NaN"):
        factorize(torch.eye(3), torch.full((3, 3), float("nan")))


def test_symmetric_sqrt_is_scipys():
    _, _, g = problem(6, 5, 5)
    root, inverse = symmetric_sqrt(g)
    np.testing.assert_allclose(root.numpy(), np.real(scipy.linalg.sqrtm(g.numpy())), atol=1e-7)
    torch.testing.assert_close(root @ inverse, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.data())
def test_pivoted_form_is_exact(d_out, d_in, data):
    rank = data.draw(st.integers(1, min(d_out, d_in)))
    generator = torch.Generator().manual_seed(d_out * 100 + d_in)
    left = torch.randn(d_out, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, d_in, generator=generator, dtype=torch.float64)
    form = pivoted(left, right)
    assert form is not None
    rebuilt = torch.cat([form.basis, form.weight @ form.basis])[form.order]
    torch.testing.assert_close(rebuilt, left @ right, rtol=1e-7, atol=1e-9)
    assert form.basis.numel() + form.weight.numel() == parameters(rank, d_out, d_in, "pivoted") <= d_out * d_in


def test_dependent_pivots_fall_back():
    left = torch.ones(5, 2, dtype=torch.float64)
    assert pivoted(left, torch.randn(2, 4, dtype=torch.float64)) is None


@pytest.mark.parametrize("seed", range(5))
def test_pivoted_keeps_rows_of_the_product_itself_and_solves_for_the_others(seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((9, 3), (3, 7)))
    form = pivoted(left, right)
    assert form is not None
    product = (left @ right).numpy()
    assert sorted(form.order.tolist()) == list(range(9))
    kept, others = (np.flatnonzero(test(form.order.numpy())) for test in (lambda o: o < 3, lambda o: o >= 3))
    by_place = kept[np.argsort(form.order.numpy()[kept])]
    np.testing.assert_allclose(form.basis.numpy(), product[by_place], rtol=1e-12)
    expected = np.linalg.lstsq(form.basis.numpy().T, product[others].T, rcond=None)[0].T
    np.testing.assert_allclose(form.weight.numpy()[form.order.numpy()[others] - 3], expected, rtol=1e-8, atol=1e-10)
    assert form.growth == pytest.approx(np.abs(expected).max())


def test_coefficients_that_grow_too_far_are_refused():
    """Kahan's matrix (1966) defeats column pivoting: coefficients grow like (1 + c)^r though all columns have one norm."""
    r, c = 25, 0.6
    s = (1 - c * c) ** 0.5
    falling = 1 + 1e-9 * np.arange(r, 0, -1)  # so that pivoting takes the columns in this order
    kahan = np.diag(s ** np.arange(r)) @ (np.eye(r) - c * np.triu(np.ones((r, r)), 1)) @ np.diag(falling)
    last = np.linalg.solve(kahan, s ** (r - 1) * np.eye(r)[-1])  # the coefficients of one more column
    left = torch.from_numpy(np.c_[kahan, s ** (r - 1) * np.eye(r)[-1] * 0.999].T.copy())
    assert np.abs(last).max() > MAX_GROWTH
    assert pivoted(left, torch.eye(r, dtype=torch.float64)) is None
