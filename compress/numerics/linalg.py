"""One factorization for every low-rank method, in float64 on the CPU.

`factorize` minimises E‖G^½ (W x − L R x)‖² over products L R of a given rank, for inputs with second moment (or covariance)
C: weight PCA is C = G = I, whitened SVD is the uncentred C, feature-space decomposition the centred C with a bias, the
loss-weighted forms add the output-gradient moment G. All are the eigenproblem of M Mᵀ with M = G^½ W C^½
(Eckart–Young–Mirsky), and the solutions of all ranks are nested, so one decomposition serves every ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.numerics.conventions import damping, signed
from compress.numerics.lapack import eigh, pivoted_triangle, solve_upper

DAMPING = 1e-8  # of the mean eigenvalue; only where a metric must be inverted
MAX_GROWTH = 1e3  # largest pivoted coefficient that is still trusted in a 16-bit format


@dataclass(frozen=True)
class Decomposition:
    """Nested solutions: the best product of rank r is left[:, :r] @ right[:r].

    left (d_out, k), right (k, d_in), spectrum (k,) descending: the expected squared error of rank r is spectrum[r:].sum().
    """

    left: Tensor
    right: Tensor
    spectrum: Tensor

    @property
    def max_rank(self) -> int:
        """How many components there are: min(d_out, d_in)."""
        return self.spectrum.shape[0]

    def truncate(self, rank: int) -> tuple[Tensor, Tensor]:
        """(weight (d_out, rank), basis (rank, d_in))."""
        return self.left[:, :rank], self.right[:rank]

    def relative_error(self, rank: int) -> float:
        """Root of the discarded share of the metric's energy, in [0, 1]."""
        total = float(self.spectrum.sum())
        return (float(self.spectrum[rank:].sum()) / total) ** 0.5 if total > 0 else 0.0


def symmetric_sqrt(metric: Tensor, share: float = DAMPING) -> tuple[Tensor, Tensor]:
    """(metric^½, metric^−½) of a positive semidefinite matrix (d, d), float64.

    Eigenvalues are raised by `share` of their mean, so that directions never seen in calibration stay finite; eigenvalues
    that rounding made negative count as 0. Equivalent to `scipy.linalg.sqrtm(metric + share·tr/d·I)` and its inverse. A
    Cholesky root would be cheaper, but fails on the singular metrics that few tokens leave.

    >>> root, inverse = symmetric_sqrt(torch.diag(torch.tensor([4.0, 9.0], dtype=torch.float64)), 0.0)
    >>> root.diagonal().tolist(), (1 / inverse.diagonal()).tolist()
    ([2.0, 3.0], [2.0, 3.0])
    """
    values, vectors = eigh(metric)
    # A metric of zeros gets the smallest normal number: its root is 1.5e-154 and its inverse root 7e153, both finite.
    floor = share * float(values.clamp_min(0).mean()) or torch.finfo(torch.float64).tiny
    roots = (values.clamp_min(0) + floor).sqrt()
    # Scaling the columns of V is V diag(·), without the diagonal matrix.
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def factorize(
    weight: Tensor, input_metric: Tensor | None = None, output_metric: Tensor | None = None, input_damping: float = 0.0
) -> Decomposition:
    """All nested rank-r minimisers of tr(G (W − LR) C (W − LR)ᵀ) for weight W (d_out, d_in).

    input_metric C (d_in, d_in) and output_metric G (d_out, d_out) default to the identity; `input_damping` times its mean
    eigenvalue is added to C. The smaller side's eigenproblem is solved; on the output side C is never inverted nor copied.
    Raises ValueError for non-finite entries, naming which argument has them.
    """
    for name, value in (("weight", weight), ("input_metric", input_metric), ("output_metric", output_metric)):
        # A sum is finite only where every term is, and needs no temporary of the metric's size.
        if value is not None and not bool(torch.isfinite(value.sum(dtype=torch.float64))):
            raise ValueError(f"{name} has NaN or Inf entries; a decomposition of it would be meaningless")
    weight = weight.to(torch.float64)
    d_out, d_in = weight.shape
    # M = G^½ W C^½. Of its two Gram matrices the smaller one is decomposed: M Mᵀ (d_out, d_out) or Mᵀ M (d_in, d_in).
    if d_out <= d_in:
        g_root, g_inverse = symmetric_sqrt(output_metric) if output_metric is not None else (None, None)
        weighted = weight if g_root is None else g_root @ weight
        product = weighted
        if input_metric is not None:
            product = weighted @ input_metric
            product.add_(weighted, alpha=damping(input_metric, input_damping))  # W (C + damping·I), without copying C
        gram = product @ weighted.T
        del product  # as large as the weight
        vectors, spectrum = _leading(gram)
        # L R = G^−½ U_r U_rᵀ G^½ W: the projection of M on its leading left vectors, both roots undone. C^½ cancels.
        left = vectors if g_inverse is None else g_inverse @ vectors
        return Decomposition(left, vectors.T @ weighted, spectrum)
    # More outputs than inputs: the same problem for Mᵀ M, of the smaller side, which needs the root of C but not of G: Wᵀ G W.
    c_root, c_inverse = None, None
    if input_metric is not None:
        # DAMPING besides the caller's: here C^−½ is needed, and few tokens leave C singular.
        c_root, c_inverse = symmetric_sqrt(input_metric, DAMPING + input_damping)
    felt = weight
    if output_metric is not None:
        felt = output_metric @ weight
        felt.add_(weight, alpha=damping(output_metric, DAMPING))  # as `symmetric_sqrt` would
    gram = weight.T @ felt
    vectors, spectrum = _leading(gram if c_root is None else c_root @ gram @ c_root)
    # L R = W C^½ V_r V_rᵀ C^−½: on this side G^½ cancels, and its inverse is not needed.
    left = weight @ (vectors if c_root is None else c_root @ vectors)
    return Decomposition(left, vectors.T if c_inverse is None else vectors.T @ c_inverse, spectrum)


def _leading(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (columns) and eigenvalues of a symmetric matrix, largest first, with a fixed sign."""
    # eigh reads one triangle only, and rounding in the products makes the two differ: their mean is symmetric to the last bit.
    vectors, values = largest_first((gram + gram.T).mul_(0.5))
    # A Gram matrix has no negative eigenvalue: what is below 0 is rounding.
    return signed(vectors), values.clamp_min(0)


@dataclass(frozen=True)
class PivotedForm:
    """weight (d_out − r, r), basis (r, d_in), order (d_out,) int32: row i of the product is [basis; weight @
    basis][order[i]].
    """

    weight: Tensor
    basis: Tensor
    order: Tensor
    growth: float  # largest |coefficient|


def pivoted(left: Tensor, right: Tensor) -> PivotedForm | None:
    """The product left @ right with r of its rows kept and the others as combinations of them; None where it is
    ill-conditioned.

    Exact in exact arithmetic, r·(d_out + d_in − r) numbers. Pivot rows by column-pivoted QR of leftᵀ (Businger–Golub), which
    keeps the coefficients small; past `MAX_GROWTH` the plain form is safer.
    """
    rank = left.shape[1]
    # leftᵀ[:, order] = Q [R₁ R₂]: in the basis of the first r rows the others are (R₁⁻¹ R₂)ᵀ, whatever Q is.
    triangle, order = pivoted_triangle(left.T)
    diagonal = abs(triangle.diagonal())
    if diagonal[-1] <= diagonal[0] * 1e-12:  # rank-deficient: the pivots cannot carry the other rows
        return None
    coefficients = torch.as_tensor(solve_upper(triangle[:, :rank], triangle[:, rank:])).T  # (d_out − r, r)
    growth = float(coefficients.abs().max()) if coefficients.numel() else 0.0
    if growth > MAX_GROWTH:
        return None
    permutation = torch.as_tensor(order.astype("int64"))
    # The argsort of a permutation is its inverse: where in [basis; weight @ basis] each row of the product is found.
    return PivotedForm(coefficients.contiguous(), left[permutation[:rank]] @ right, torch.argsort(permutation).int(), growth)


def largest_first(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(eigenvectors as columns (d, d), eigenvalues (d,)) of a symmetric matrix (d, d), the largest eigenvalue first.

    Signs are LAPACK's (`conventions.signed` fixes them), and an eigenvalue of 0 may come out as a tiny negative one.

    >>> vectors, values = largest_first(torch.diag(torch.tensor([1.0, 5.0])))
    >>> values.tolist(), vectors[:, 0].abs().tolist()
    ([5.0, 1.0], [0.0, 1.0])
    """
    values, vectors = eigh(matrix)
    return vectors.flip(1), values.flip(0)


def principal_components(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """(components as columns (d, d), variances (d,), none negative) of a covariance (d, d), the largest variance first.

    Signs are LAPACK's; `conventions.signed(components)` fixes them where components are stored.

    >>> components, variances = principal_components(torch.tensor([[2.0, 2.0], [2.0, 2.0]]))
    >>> [round(float(v), 6) for v in (*variances, (components[:, 0] ** 2)[0])]
    [4.0, 0.0, 0.5]
    """
    components, variances = largest_first(covariance)
    return components.contiguous(), variances.clamp_min(0)
