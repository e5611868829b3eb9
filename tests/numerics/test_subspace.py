"""Directions that expressions read: white latents of every kind, and each kind finds what it is defined to find."""

import numpy as np
import pytest
import torch

from compress.numerics import subspace

D = 8


def rows(seed=0, count=300):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, D)) @ rng.normal(size=(D, D)) + rng.normal(size=D))


def covariance(x):
    return torch.from_numpy(np.cov(x.numpy().T, bias=True))


def made(kind, x, count):
    """The basis of a kind, for something to predict or to differentiate that is random."""
    rng = np.random.default_rng(7)
    c = covariance(x)
    if kind == "pca":
        return subspace.principal(c, count)
    if kind == "regression":
        return subspace.regression(c, torch.from_numpy(rng.normal(size=(3, D))) @ c, count)
    jacobians = torch.from_numpy(rng.normal(size=(40, 3, D)))
    return subspace.gradient(c, jacobians, count, per_output=kind == "per output")


kinds = pytest.mark.parametrize("kind", ["pca", "regression", "gradient", "per output"])


@kinds
@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_latents_have_unit_variance_and_are_uncorrelated(kind, count):
    x = rows()
    basis = made(kind, x, count)
    assert basis.shape == (count, D)
    latents = (x - x.mean(0)) @ basis.T
    np.testing.assert_allclose(np.cov(latents.numpy().T, bias=True).reshape(count, count), np.eye(count), atol=1e-6)


@kinds
def test_signs_are_fixed(kind):
    basis = made(kind, rows(), 4).numpy()
    assert (np.take_along_axis(basis, np.abs(basis).argmax(1, keepdims=True), 1) > 0).all()


def angle(basis, planted):
    """Sine of the largest angle between two row spaces: 0 where they are equal."""
    (q, _), (p, _) = np.linalg.qr(np.asarray(basis).T), np.linalg.qr(np.asarray(planted).T)
    return np.linalg.norm(q - p @ (p.T @ q), 2)


def test_principal_directions_are_numpys_singular_vectors():
    x = rows()
    vh = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)[2]
    assert angle(subspace.principal(covariance(x), 3), vh[:3]) < 1e-8


def test_regression_predicts_as_well_as_reduced_rank_regression_can():
    """Izenman 1975: of all affine maps of rank r, the least residual is the variance of t less the r leading eigenvalues of
    cov(t, x) cov(x)⁻¹ cov(x, t)."""
    rng = np.random.default_rng(3)
    x = rows().numpy()
    t = x @ rng.normal(size=(D, 4)) + rng.normal(size=(len(x), 4))
    c, cross = np.cov(x.T, bias=True), (t - t.mean(0)).T @ (x - x.mean(0)) / len(x)
    explained = np.linalg.eigvalsh(cross @ np.linalg.solve(c, cross.T))[::-1]
    for rank in (1, 2, 3):
        latents = (x - x.mean(0)) @ subspace.regression(torch.from_numpy(c), torch.from_numpy(cross), rank).numpy().T
        design = np.c_[np.ones(len(x)), latents]
        residual = t - design @ np.linalg.lstsq(design, t, rcond=None)[0]
        expected = t.var(axis=0).sum() - explained[:rank].sum()
        assert (residual**2).mean(0).sum() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("per_output", [False, True])
def test_gradient_finds_a_planted_subspace(per_output):
    """f(x) = (sin a·x, (b·x)²) + a linear part: its gradient varies along a and b alone, whatever the linear part."""
    rng = np.random.default_rng(4)
    x, a, b, linear = rows(1), rng.normal(size=D), rng.normal(size=D), 50 * rng.normal(size=(2, D))
    first, second = np.cos(x.numpy() @ a)[:, None] * a, 2 * (x.numpy() @ b)[:, None] * b
    jacobians = torch.from_numpy(np.stack([first, second], axis=1) + linear)
    basis = subspace.gradient(covariance(x), jacobians, 2, per_output=per_output)
    assert angle(basis, [a, b]) < 1e-5


def test_per_output_gives_a_quiet_output_its_share():
    rng = np.random.default_rng(5)
    x, a, b, c = rows(2), *rng.normal(size=(3, D))
    p, q, r = (torch.from_numpy(rng.normal(size=(40, 1))) for _ in range(3))
    loud = 1e3 * (p * torch.from_numpy(a) + q * torch.from_numpy(b))
    jacobians = torch.stack([loud, r * torch.from_numpy(c)], dim=1)
    assert angle(subspace.gradient(covariance(x), jacobians, 2), [a, b]) < 1e-2
    shared = subspace.gradient(covariance(x), jacobians, 2, per_output=True).numpy()
    remainder = c - np.linalg.lstsq(shared.T, c, rcond=None)[0] @ shared
    assert np.linalg.norm(remainder) < 1e-5 * np.linalg.norm(c)


@pytest.mark.parametrize("dimensions", [1, 3, D])
def test_moving_counts_the_directions_there_are(dimensions):
    rng = np.random.default_rng(6)
    x = torch.from_numpy(rng.normal(size=(200, dimensions)) @ rng.normal(size=(dimensions, D)) + 5)
    assert subspace.moving(covariance(x)) == dimensions
