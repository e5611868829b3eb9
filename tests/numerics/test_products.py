"""Every path of the sums of products against a float64 oracle, whatever device it is for."""

import pytest
import torch

from compress.numerics import products
from compress.numerics.statistics import CrossMoments, HeadMoments, Moments


def rows(seed, count=700, width=24):
    """With a large mean, one enormous dimension and few significant digits left for the rest: real activations."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(count, width, generator=generator) * torch.logspace(-2, 1, width) + 3
    out[::97, 5] = 4e3
    return out


@pytest.fixture(params=["float64", "blocks", "host"])
def path(request, monkeypatch):
    monkeypatch.setattr(products, "path", lambda _: request.param)
    return request.param


BOUND = {"float64": 1e-13, "blocks": 2e-6, "host": 2e-6}  # of the root of both variances


def scaled(error, left, right):
    return float((error.abs() / torch.outer(left.diagonal().sqrt(), right.diagonal().sqrt())).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_on_every_path(path, dtype):
    x, y = (rows(seed).to(dtype) for seed in (0, 1))
    moments, crossed = Moments(24), CrossMoments(24, 24)
    for part in (slice(0, 300), slice(300, 700)):
        moments.update(x[part])
        crossed.update(x[part], y[part])
    moments.settle()
    crossed.settle()
    both = torch.cov(torch.cat([x, y], dim=1).double().T, correction=0)
    read, given, cross = both[:24, :24], both[24:, 24:], both[24:, :24]
    assert scaled(moments.covariance - read, read, read) < BOUND[path]
    assert scaled(crossed.cross_covariance - cross, given, read) < BOUND[path]
    torch.testing.assert_close(moments.mean, x.double().mean(0), rtol=BOUND[path], atol=BOUND[path])
    torch.testing.assert_close(crossed.target_mean, y.double().mean(0), rtol=BOUND[path], atol=BOUND[path])


def test_squares_of_heads_on_every_path(path):
    x = rows(2, 600).view(600, 3, 8)
    moments = HeadMoments(3, 8)
    moments.update(x[:400])
    moments.update(x[400:])
    oracle = torch.einsum("nhd,nhe->hde", x.double(), x.double()) / 600
    for found, wanted in zip(moments.second_moment, oracle, strict=True):
        assert scaled(found - wanted, wanted, wanted) < BOUND[path]
