"""What may stand for an MLP: pruned channels, affine maps, expressions, controls; one file each. What a method of another
package builds on is imported from here.

In: the MLP, moments and samples of its input and output. Out: a module in its place.
"""

from __future__ import annotations

from compress.methods.mlp._shared import (
    MLPMethod,
    affine_replacement,
    chain_tensors,
    d_model,
    mlp_chain,
    mlp_parameters,
    output_metric,
    parameters_before,
)

__all__ = [
    "MLPMethod",
    "affine_replacement",
    "chain_tensors",
    "d_model",
    "mlp_chain",
    "mlp_parameters",
    "output_metric",
    "parameters_before",
]
