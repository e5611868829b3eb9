"""A low-rank or pivoted linear whose basis may belong to another module, which stores it and may have it computed already."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from compress.kinds.contract import Kind, Name, Place, Positive, Size, Work, defaults
from compress.nn.linear import SharedLinear
from compress.source.pieces import LinearSource


class Shared(Kind):
    """y = rows(weight, p) + bias, p = owner.basis @ x; the owner (owner: null) stores the basis."""

    kind = "shared_linear"
    replaces = "linear"
    runtime = SharedLinear

    in_features: Positive
    out_features: Positive
    rank: Positive
    bias: bool
    stored_rows: Size
    owner: Name | None = None

    @property
    def reads(self) -> str | None:
        """The owner of the basis; None for the owner itself."""
        return self.owner

    def link(self, module: nn.Module, owner: nn.Module) -> None:
        """Raises ValueError where the owner has no basis to share."""
        if not isinstance(owner, SharedLinear) or not isinstance(module, SharedLinear):
            raise ValueError(f"its owner {self.owner!r} holds no shared basis")
        module.link(owner)

    def work(self, module: nn.Module, place: Place) -> Work:
        """The basis costs one product for each different activation that its modules read."""
        # Whoever reads an activation first pays for the product; the others find it computed.
        product = (self.owner or place.module, place.activation)
        matrices = self.stored_rows * self.rank + (product not in place.shared) * self.rank * self.in_features
        place.shared.add(product)
        return Work(matrices)

    def torch_linear(self, place: Callable[[str], str]) -> LinearSource:
        """With the owner under its name in the file."""
        options = self.arguments()
        # The owner has another name in the file.
        if self.owner is not None:
            options["owner"] = place(self.owner)
        return LinearSource(SharedLinear.__name__, options, SharedLinear, defaults(SharedLinear))
