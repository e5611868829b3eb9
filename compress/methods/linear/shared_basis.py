"""One basis for several projections: K and V of a layer, everything that reads the same input, or one role over neighbouring
layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from compress.architecture import Architecture
from compress.methods.base import Material
from compress.methods.linear._low_rank import LowRankMethod, merged_inputs


class SharedBasis(LowRankMethod):
    """[W_1; W_2; …] ≈ [L_1; L_2; …] R: the basis R is stored once, and computed once where the modules read the same input."""

    reference = "edwinhere/surgery (K and V stacked); Basis Sharing (ICLR 2025) for neighbouring layers"

    examples = (
        {"rank": {"keep": 0.6}, "share": [["o"]]},
        {"rank": {"keep": 0.6}, "share": [["down"]], "layers_together": 2, "form": "pivoted"},
    )

    share: list[list[str]] = Field(
        [["k", "v"]], description="roles stacked together within a layer; a role alone pairs with `layers_together`"
    )
    layers_together: Annotated[int, Field(ge=1)] = Field(
        1, description="this many neighbouring layers share one basis per set of roles"
    )
    metric: Literal["centred", "uncentred", "weight"] = Field(
        "centred",
        description="centred: output covariance and a bias; uncentred: whitening; weight: no data, the published form",
    )

    def groups(self, modules: Sequence[str], architecture: Architecture) -> list[tuple[str, ...]]:
        """Raises ValueError for a set that does not read one activation, or roles that are not targeted."""
        places = {module: place for module in modules if (place := architecture.locate(module)) is not None}
        layers = sorted({index for index, _ in places.values()})
        # Neighbours by number; the last block may be a shorter one.
        blocks = [layers[i : i + self.layers_together] for i in range(0, len(layers), self.layers_together)]
        out = []
        for roles in self.share:
            # Every role is checked against the first: one basis has one input.
            for role in roles:
                if role not in architecture.roles:
                    raise ValueError(
                        f"share: role {role!r} is not in {architecture.model_type}; allowed: {', '.join(architecture.roles)}"
                    )
                if role not in architecture.input_roles(roles[0]):
                    raise ValueError(
                        f"share: {roles} do not read the same input; {roles[0]} goes with {architecture.input_roles(roles[0])}"
                    )
            for block in blocks:
                members = tuple(m for i in block for role in roles if (m := architecture.module(i, role)) in places)
                if members:
                    out.append(members)
        if not out:
            raise ValueError(f"share: {self.share} matches none of the targeted modules; add their roles to targets")
        return out

    def input_metric(self, material: Material) -> Tensor | None:
        """The inputs' covariance or second moment, (d_in, d_in), over all layers of the group; None without data."""
        if self.metric == "weight":
            return None
        moments = merged_inputs(material)
        return moments.covariance if self.metric == "centred" else moments.second_moment

    def mean_input(self, material: Material) -> Tensor | None:
        """The inputs' mean, (d_in,), where the metric is centred."""
        return merged_inputs(material).mean if self.metric == "centred" else None
