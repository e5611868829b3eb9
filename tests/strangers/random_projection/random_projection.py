"""A linear seen through a random subspace of its inputs."""

import torch
from pydantic import Field

from compress.checkpoint.units import Artefact
from compress.methods.base import Material
from compress.methods.linear import LowRankMethod, merged_inputs


class RandomProjection(LowRankMethod):
    """W ≈ (W C Rᵀ) R, rows of R random in C^power and orthonormal under C: least squares through a random subspace."""

    reference = "Halko, Martinsson & Tropp 2011, with one pass over the inputs' second moment"
    examples = ({"rank": {"keep": 0.6}}, {"rank": {"keep": 0.6}, "power": 2, "form": "pivoted"})
    whole = None  # where d_out < d_in, d_out random directions of the inputs miss the others

    power: int = Field(1, ge=0, le=4, description="how often the random directions pass through the second moment")

    def fit(self, material: Material) -> Artefact:
        (module,) = material.group.modules
        weight, bias = material.linear(module)  # (d_out, d_in)
        d_out, d_in = weight.shape
        root = _root(merged_inputs(material).second_moment)
        moment = root @ root.T
        most = min(d_out, d_in) if self.form == "pivoted" else max(1, d_out * d_in // (d_out + d_in))
        generator = torch.Generator().manual_seed(material.seed)
        random = torch.randn(d_in, most, generator=generator, dtype=torch.float64)
        for _ in range(self.power):
            random = torch.linalg.qr(moment @ random).Q
        # rows of R with R C Rᵀ = I, so that every subset of them has its own columns of W C Rᵀ as least squares
        basis = torch.linalg.solve_triangular(root.T, torch.linalg.qr(root.T @ random).Q, upper=True).T
        outer = weight @ moment @ basis.T
        loss = material.statistics.get(f"gradient:{module}")  # `importance: fisher` changes the worth, not the least squares
        weigh = torch.eye(d_out, dtype=torch.float64) if loss is None else _root(loss.second_moment).T
        worth = (weigh @ outer).square().sum(0)
        order = worth.argsort(descending=True, stable=True)
        missed = ((weigh @ weight @ root).square().sum() - worth.sum()).clamp_min(0)
        spectrum = torch.cat([worth[order], missed[None]])
        tensors = {
            "left": outer[:, order].float().contiguous(),
            "right": basis[order].float().contiguous(),
            "spectrum": spectrum,
        }
        if bias is not None:
            tensors["output_mean"] = bias
        return Artefact(tensors, {"shape": [d_out, d_in], "rows": [d_out], "biased": [bias is not None]})


def _root(moment: torch.Tensor) -> torch.Tensor:
    """L with L Lᵀ = moment, a little of the identity added."""
    return torch.linalg.cholesky(moment + 1e-9 * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64))
