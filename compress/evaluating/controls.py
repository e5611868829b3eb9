"""Controls of a finished model: the same layers without their MLPs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.architecture import Architecture, architecture
from compress.checkpoint.units import Artefact
from compress.loading.modules import install, within
from compress.loading.quantizer import attach_plan
from compress.methods.base import Group
from compress.methods.mlp.skip_mlp import SkipMLP
from compress.plan import Plan

MEAN_BATCH_TOKENS = 2048


def skip_layers(
    model: Any, row: Architecture, layers: Sequence[int], kind: str, means: Mapping[int, Tensor] | None = None
) -> None:
    """Replace the MLPs of some layers in place by x, 0 or their mean output, and record it in the model's config."""
    specs = []
    for layer in layers:
        group = Group(kind, 0, layer, tuple(f"{row.layer(layer)}.{name}" for name in row.mlp))
        artefact = Artefact({} if means is None else {"mean": means[layer]}, {})
        method = SkipMLP.model_validate({"output": kind.removeprefix("skip-")})
        replacement = method.replace(group, artefact, row)
        find, put = within(model)
        install(replacement.specs, replacement.tensors, find=find, put=put, stored_in=model.dtype, computed_in=model.dtype)
        specs += replacement.specs
    attach_plan(model, Plan(modules=tuple(specs)))


@torch.inference_mode()
def mlp_means(model: Any, tokens: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """Mean output of each layer's MLP over windows (n, length): {layer: (d_model,) float64}."""
    row = architecture(model.config.model_type)
    sums: dict[int, Tensor] = {}

    def adder(layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            # Summed in float64, whatever the model computes in, and on the CPU: MPS has none.
            total = output.reshape(-1, output.shape[-1]).cpu().sum(dim=0, dtype=torch.float64)
            sums[layer] = sums.get(layer, torch.zeros_like(total)) + total

        return hook

    handles = [model.get_submodule(f"{row.layer(layer)}.{row.mlp[-1]}").register_forward_hook(adder(layer)) for layer in layers]
    try:
        for part in tokens.split(max(1, MEAN_BATCH_TOKENS // tokens.shape[1])):
            # Without the head: no logits are needed.
            model.get_submodule(row.base_prefix)(input_ids=part.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: total / tokens.numel() for layer, total in sums.items()}
