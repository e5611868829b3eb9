"""What the theorems leave open, decided once: the sign of a vector, the scale between two factors, the floor of a metric.

Every method that stores factors or inverts a metric calls these, so that files are the same wherever they are made, and two
methods that should agree do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.numerics.lapack import norms

_SMALLEST = 1e-300  # float64: divides without overflow where a factor has a column of zeros


def signed(vectors: Tensor, dim: int = 0) -> Tensor:
    """Vectors along `dim` (0: the columns, 1: the rows), each turned so that its entry of largest magnitude is positive.

    An eigenvector or singular vector is one only up to its sign, which differs between LAPACK builds; of several largest
    entries the first counts, and a vector of zeros stays one. Equivalent to `sklearn.utils.extmath.svd_flip` on one factor.

    >>> signed(torch.tensor([[1.0, 2.0], [-3.0, 1.0]]))
    tensor([[-1.,  2.],
            [ 3.,  1.]])
    >>> signed(torch.tensor([[1.0, 2.0], [-3.0, 1.0]]), dim=1)
    tensor([[ 1.,  2.],
            [ 3., -1.]])
    """
    return vectors * torch.sign(vectors.gather(dim, vectors.abs().argmax(dim=dim, keepdim=True)))


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product of left (d_out, r) and right (r, d_in), with column k of left and row k of right of equal norm.

    Both get the root of component k's size, so neither under- nor overflows in 16 bits and rounding costs the product least.
    A component that is zero in one factor becomes tiny in the other, but stays finite.

    >>> left, right = balanced(torch.tensor([[8.0]]), torch.tensor([[2.0]]))
    >>> left, right
    (tensor([[4.]]), tensor([[4.]]))
    """
    # scale² = |r_k| / |l_k|: then both have the norm √(|l_k| |r_k|), and their product is what it was.
    scale = (norms(right, 1) / norms(left, 0).clamp_min(_SMALLEST)).clamp_min(_SMALLEST).sqrt()
    return left * scale, right / scale[:, None]


def damping(metric: Tensor, share: float, empty: float = 0.0) -> float:
    """`share` of the mean diagonal entry of a metric (d, d), in the metric's units; `empty` where that is 0.

    The mean diagonal is the mean eigenvalue, so a share means the same whatever the units of a layer's activations. A metric
    that measured nothing has none: `empty` = 1 makes it the identity instead of singular.

    >>> metric = torch.diag(torch.tensor([1.0, 3.0]))
    >>> damping(metric, 0.5), damping(0 * metric, 0.5), damping(0 * metric, 0.5, empty=1.0)
    (1.0, 0.0, 1.0)
    """
    # `or`, not a maximum: exactly 0 means that nothing was measured, or nothing asked for.
    return share * float(metric.diagonal().mean()) or empty


def damped(metric: Tensor, share: float, empty: float = 0.0) -> Tensor:
    """metric + damping · I, (d, d): a copy with no eigenvalue below `damping(metric, share, empty)`, if it had none below 0.

    Ridge or Tikhonov regularisation of whatever inverts the metric. Where the metric is the caller's own and large,
    `metric.diagonal().add_(damping(metric, share))` gives the same entries without the copy.

    >>> damped(torch.tensor([[2.0, 1.0], [1.0, 0.0]]), 0.1)
    tensor([[2.1000, 1.0000],
            [1.0000, 0.1000]])
    """
    # A copy: the metric may be an accumulator's own memory (`Moments.covariance`), which is never written.
    out = metric.clone()
    out.diagonal().add_(damping(metric, share, empty))
    return out
