"""A plain linear of another shape, or with a bias that the original did not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from compress.kinds.contract import Kind, Moves, Place, Positive, Work, asked
from compress.nn.linear import DenseLinear
from compress.source.pieces import LinearSource


class Dense(Kind):
    """With `extra_bias` the bias is the last column of weight, so that a loader that does not know us stops on the shape."""

    kind = "dense_linear"
    replaces = "linear"
    runtime = DenseLinear

    in_features: Positive
    out_features: Positive
    bias: bool
    extra_bias: bool = False

    @model_validator(mode="after")
    def _one_bias(self) -> Self:
        if self.bias and self.extra_bias:
            raise ValueError("`bias` or `extra_bias`, not both: the latter is for an original without one")
        return self

    def work(self, module: nn.Module, place: Place) -> Work:
        """As its module counts."""
        return Work(asked(module, place.context))

    def move_outputs(self, channels: Tensor) -> Moves:
        """Rows of the weight, and the bias with them."""
        return {"weight": (0, channels), "bias": (0, channels)}

    def move_inputs(self, channels: Tensor) -> Moves:
        """Columns of the weight."""
        # The bias, where it is a column, stays behind the inputs.
        bias = torch.arange(len(channels), len(channels) + self.extra_bias)
        return {"weight": (1, torch.cat([channels, bias]))}

    def torch_linear(self, place: Callable[[str], str]) -> LinearSource:
        """torch's own class: the file has no loader for whose sake a bias would be kept in the weight."""
        options = {"in_features": self.in_features, "out_features": self.out_features, "bias": self.bias or self.extra_bias}
        # The last column of the checkpoint's weight is the bias.
        columns = {"weight": ("weight", (slice(None), slice(None, -1))), "bias": ("weight", (slice(None), -1))}
        return LinearSource("nn.Linear", options, None, tensors=columns if self.extra_bias else {})

    def for_onnx(self, module: nn.Module) -> nn.Module:
        """A plain linear, so that the graph has weight and bias by name."""
        if not isinstance(module, DenseLinear) or not module.extra_bias:
            return module
        # Meta: both parameters are assigned, so none has to be made.
        linear = nn.Linear(module.in_features, module.out_features, device="meta")
        linear.weight = nn.Parameter(module.weight.detach()[:, :-1].contiguous())
        linear.bias = nn.Parameter(module.weight.detach()[:, -1].contiguous())
        return linear
