"""The number of threads changes no bit of what a fit computes."""

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from compress.fitting.descent import gradients_of
from compress.numerics import lapack


def with_threads(count, make):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            return make()
    finally:
        torch.set_num_threads(before)


def matrix(rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


DECOMPOSITIONS = {
    "eigh": lambda: lapack.eigh(matrix(400, 400) @ matrix(400, 400).T),
    "svd": lambda: lapack.right_singular(matrix(300, 500)),
    "qr": lambda: [lapack.orthonormal_columns(matrix(500, 300))],
    "pivoted QR": lambda: [torch.as_tensor(part) for part in lapack.pivoted_triangle(matrix(300, 900))],
    "solve": lambda: [lapack.solve(matrix(300, 300), matrix(300, 200))],
    "least squares": lambda: [torch.as_tensor(lapack.least_squares(matrix(900, 60).numpy(), np.arange(900.0)))],
}


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_decompositions(name):
    one, two = (with_threads(count, DECOMPOSITIONS[name]) for count in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_gradients_of_factors_of_low_rank():
    """Seven rows of 500: a product that MKL cuts otherwise on two threads than on one."""
    factor = torch.nn.Linear(500, 7)
    rows = [torch.randn(512, 500, generator=torch.Generator().manual_seed(lane)) for lane in range(4)]

    def make():
        losses = {lane: lambda x=x: factor(x).square().mean() for lane, x in enumerate(rows)}
        return gradients_of(list(factor.parameters()), losses, lanes=4)

    one, two = with_threads(1, make), with_threads(2, make)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    alone = torch.autograd.grad(sum(factor(x).square().mean() for x in rows), list(factor.parameters()))
    for found, wanted in zip(one, alone, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
