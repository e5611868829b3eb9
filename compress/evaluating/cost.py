"""What a model costs, counted from its shapes: parameters, bytes on disk, multiply-adds and cache bytes per token.

No weight is read: the model is built on the meta device from config.json and its Plan. "Ratio" is ambiguous in the
literature, so an account says what is kept of the replaced modules and of the whole model, beside bytes and multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress import kinds
from compress.architecture import Architecture, architecture
from compress.checkpoint.config import load_config
from compress.kinds.contract import Place
from compress.loading.modules import apply_plan
from compress.plan import Plan, read_plan


@dataclass(frozen=True)
class MultiplyAdds:
    """Multiply-adds of one new token after `context` − 1 earlier ones, so that it attends to `context` positions.

    An operation of a symbolic program counts as one. Norms, activations, rotary embeddings and softmax are left out, as usual.
    """

    context: int
    linears: int  # matrix products inside the decoder layers
    head: int  # every matrix product outside them
    attention: int  # queries with keys, weights with values
    programs: int  # operations of symbolic programs

    @property
    def total(self) -> int:
        """Multiply-adds of all kinds together."""
        return self.linears + self.head + self.attention + self.programs


@dataclass(frozen=True)
class Account:
    """The cost of one model folder; `replaced_…` and `model_kept` compare it with the model it was made from."""

    parameters: int
    weight_bytes: int
    multiply_adds: MultiplyAdds
    baseline_parameters: int
    replaced_baseline: int  # parameters of the original modules that the plan replaces

    @property
    def model_kept(self) -> float:
        """Fraction of the whole model's parameters that remain."""
        return self.parameters / self.baseline_parameters

    @property
    def replaced_kept(self) -> float | None:
        """Fraction of the replaced modules' parameters that remain, wherever they are stored now; None without replacements."""
        if not self.replaced_baseline:
            return None
        return (self.replaced_baseline - self.baseline_parameters + self.parameters) / self.replaced_baseline

    def to_json(self) -> dict[str, Any]:
        """JSON values, the derived fractions included."""
        multiply_adds = {**asdict(self.multiply_adds), "total": self.multiply_adds.total}
        return {
            **asdict(self),
            "multiply_adds": multiply_adds,
            "model_kept": self.model_kept,
            "replaced_kept": self.replaced_kept,
        }


def account(folder: Path, context: int = 256) -> Account:
    """Count a model folder, compressed or plain, for a token that attends to `context` positions."""
    model, original = skeleton(folder), skeleton(folder, Plan())
    # transformers drops the prefix of no causal language model: plan names are names in the whole model
    plan = read_plan(folder)
    replaced = [original.get_submodule(spec.module) for spec in plan.modules]
    return Account(
        parameters=count_parameters(model),
        weight_bytes=weight_bytes(folder),
        multiply_adds=count_multiply_adds(model, plan, context),
        baseline_parameters=count_parameters(original),
        replaced_baseline=sum(count_parameters(module) for module in replaced),
    )


def skeleton(folder: Path, plan: Plan | None = None) -> Any:
    """The model of a folder on the meta device, with its own plan or the one given."""
    from transformers import AutoModelForCausalLM

    config: Any = load_config(folder)
    # The plan is applied below, the folder's own or the one given, whatever the config names.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).eval()
        apply_plan(model, read_plan(folder) if plan is None else plan)
    return model


def count_parameters(module: nn.Module) -> int:
    """Numbers that the module stores: parameters, and buffers that files hold (orders, clamps); tied ones count once."""
    # keep_vars gives the parameters themselves: tied ones are one object, where detached copies would be two.
    stored = module.state_dict(keep_vars=True).values()
    return sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in stored}.values())


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files of a folder: safetensors, or an ONNX graph with its external data."""
    patterns = ("*.safetensors", "*.onnx", "*.onnx.data", "*.onnx_data")
    return sum(file.stat().st_size for file in {f for pattern in patterns for f in folder.glob(pattern)})


def count_multiply_adds(model: Any, plan: Plan, context: int) -> MultiplyAdds:
    """Count from shapes: a matrix (m, n) costs m·n, an embedding is looked up, a replaced module costs what its kind says."""
    row = architecture(model.config.model_type)
    found = {spec.module: kinds.of(spec) for spec in plan.modules}
    inside = outside = programs = 0
    attending: set[int] = set()  # layers whose attention counts its own products
    shared: set[tuple[str, object]] = set()
    for name, module in _uncounted(model, found):
        if name in found:
            work = found[name].work(module, Place(name, context, _activation(row, name), shared))
            programs += work.programs
            cost = work.matrices
            if work.attends:
                attending.add(int(name.removeprefix(row.layers + ".").partition(".")[0]))
        elif isinstance(module, nn.Embedding):
            cost = 0
        else:
            # Its own only: modules inside it come by themselves.
            cost = sum(p.numel() for p in module.parameters(recurse=False) if p.ndim == 2)
        if name.startswith(row.layers + "."):
            inside += cost
        else:
            outside += cost
    layers = len(model.get_submodule(row.layers))
    attention = sum(_attention(model.config, layer, context) for layer in range(layers) if layer not in attending)
    return MultiplyAdds(context, inside, outside, attention, programs)


def _uncounted(model: nn.Module, replaced: Container[str], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules by name, without those inside a replaced one, whose kind counts them; a shared one once for each place."""
    yield prefix, model
    # Its kind has counted what is inside.
    if prefix in replaced:
        return
    for name, child in model.named_children():
        yield from _uncounted(child, replaced, f"{prefix}.{name}".lstrip("."))


def _activation(row: Architecture, module: str) -> object:
    """What a linear reads: equal for linears of a layer that read the same activation."""
    place = row.locate(module)
    return module if place is None else (place[0], row.input_roles(place[1]))


def _attention(config: Any, layer: int, context: int) -> int:
    """Both products of one layer's attention for one query position, within the layer's window."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    window = getattr(config, "sliding_window", None) or context
    kinds = getattr(config, "layer_types", None)
    # A config without layer_types slides in every layer.
    slides = kinds is None or kinds[layer] == "sliding_attention"
    return 2 * heads * head_dim * (min(context, window) if slides else context)


def cache_bytes(cache: object) -> int:
    """Bytes of every tensor or array in a live cache, whatever kind of cache it is."""
    if isinstance(cache, Tensor):
        return cache.numel() * cache.element_size()
    if isinstance(cache, np.ndarray):
        return cache.nbytes
    if isinstance(cache, (list, tuple)):
        return sum(map(cache_bytes, cache))
    if hasattr(cache, "layers"):  # a transformers cache: layers with tensors for attributes
        return sum(cache_bytes(list(vars(layer).values())) for layer in cache.layers)  # pyright: ignore[reportAttributeAccessIssue]
    if hasattr(cache, "numpy"):  # an OrtValue on a device
        return cache_bytes(cache.numpy())  # pyright: ignore[reportAttributeAccessIssue]
    return 0


def cache_bytes_per_token(prefill: Callable[[Tensor], object], short: int = 4, long: int = 8) -> int:
    """Growth of the live cache per token: `prefill` takes ids (1, n) and returns the cache it filled."""
    # The difference of two lengths, so that what a cache holds at any length does not count.
    sizes = [cache_bytes(prefill(torch.zeros(1, n, dtype=torch.long))) for n in (short, long)]
    return (sizes[1] - sizes[0]) // (long - short)
