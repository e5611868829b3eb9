"""A forward pass with one decoder layer resident: hidden states move, weights come and go, hooks feed the statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.architecture import Architecture, architecture
from compress.checkpoint.source import TensorSource
from compress.compute import Compute
from compress.parallel.lanes import MicroBatch
from compress.parallel.world import world
from compress.stream.hidden import Calls, Hidden, NotFiniteError

LOGITS_ELEMENTS = 2**26  # logits held at a time, at most: 256 MiB in float32


class _Inject(nn.Module):
    """Stands for the layer before a cached depth: returns the cached hidden states, whatever it is given."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.hidden


class _Recorder(nn.Module):
    """Stands for one decoder layer in the dry pass: keeps what the model hands it, passes the hidden states through."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._like = (layer,)  # attributes some models read from their layers; in a tuple, so it is no submodule

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._like[0], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.call = (args, kwargs)
        self.hidden = hidden_states
        return hidden_states


class StreamedModel:
    """A causal language model on the meta device whose parts are loaded on demand from its stored tensors, `shards`.

    Weights are computed with in `dtype` (float32 by default, whatever the checkpoint stores), one decoder layer at a time.
    """

    def __init__(self, shards: TensorSource, config: Any, compute: Compute | None = None) -> None:
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        if getattr(config, "quantization_config", None):
            raise ValueError(f"{shards.name} is already compressed or quantized; fit a recipe on the original model")
        self.config = config
        self.architecture: Architecture = architecture(config.model_type)
        self.shards = shards
        self.compute = compute or Compute()
        self.dtype, self.device = getattr(torch, self.compute.dtype), self.compute.on()
        with init_empty_weights(include_buffers=False):
            self.model: Any = AutoModelForCausalLM.from_config(self.config, dtype=self.dtype).eval()
        # What is computed and not stored: rotary frequencies, masks.
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module.register_buffer(name, buffer.to(self.device), persistent=name not in module._non_persistent_buffers_set)
        self._missing_prefix = self._find_prefix()
        layers = self.model.get_submodule(self.architecture.layers)
        self.layers: list[nn.Module] = list(layers)
        self._container: nn.ModuleList = layers

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    def _find_prefix(self) -> str:
        """The base prefix where the checkpoint's names lack it (saved from a model without a head), else empty."""
        prefix = self.architecture.base_prefix + "."
        return "" if any(name.startswith(prefix) for name in self.shards) else prefix

    def stored_name(self, name: str) -> str:
        """The name a parameter of the whole model has in the checkpoint's files."""
        head, stored = self.architecture.head + ".", self.architecture.stored_head + "."
        if name.startswith(head):
            return stored + name.removeprefix(head)
        return name.removeprefix(self._missing_prefix)

    def full_name(self, stored: str) -> str:
        """The name a stored tensor has in the whole model."""
        head = self.architecture.stored_head + "."
        if stored.startswith(head):
            return f"{self.architecture.head}.{stored.removeprefix(head)}"
        return self._missing_prefix + stored

    def layer_weights(self, index: int) -> dict[str, Tensor]:
        """The layer's tensors as stored, by full name."""
        prefix = self.architecture.layer(index) + "."
        stored = self.shards.under(self.stored_name(prefix))
        return {prefix + name.removeprefix(self.stored_name(prefix)): value for name, value in stored.items()}

    @contextmanager
    def resident(self, index: int) -> Iterator[nn.Module]:
        """The decoder layer with its weights, in `dtype`; on exit they are dropped again."""
        layer = self.layers[index]
        prefix = self.architecture.layer(index) + "."
        self._load(layer, {k.removeprefix(prefix): v for k, v in self.layer_weights(index).items()}, prefix)
        try:
            yield layer
        finally:
            _release(layer)

    def _load(self, module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
        """Assign stored tensors; buffers that are computed, not stored, are left alone. Names the module where values are not
        finite.
        """
        own = module.state_dict()
        missing = sorted(own.keys() - tensors.keys())
        if missing:
            raise ValueError(
                f"{self.shards.name}: no tensor {name}{missing[0]}; the folder does not hold the model config.json names"
            )
        for key in own:
            if not bool(torch.isfinite(tensors[key]).all()):
                raise ValueError(f"{name}{key} has NaN or Inf weights; mend the checkpoint before compressing it")
        module.load_state_dict({k: tensors[k].to(self.device, self.dtype) for k in own}, strict=True, assign=True)

    def _load_named(self, names: Iterable[str]) -> None:
        for name in names:
            module = self.model.get_submodule(name)
            own = module.state_dict()
            if own:
                stored = {k: self.shards.tensor(self.stored_name(f"{name}.{k}")) for k in own}
                self._load(module, stored, f"{name}.")

    @torch.no_grad()
    def embed(self, tokens: Tensor, pieces: Sequence[MicroBatch] | None = None) -> Hidden:
        """Tokens (windows, length) → hidden states before layer 0 and what each layer is called with; of the micro-batches that
        this process owns, or of `pieces`.
        """
        windows, length = tokens.shape
        pieces = self.compute.own_pieces(windows, length) if pieces is None else pieces
        self._load_named(self._outside_layers())
        recorders = [_Recorder(layer) for layer in self.layers]
        base = self.model.get_submodule(self.architecture.base_prefix)
        states: list[Tensor] = []
        calls: Calls = {}
        # Three streams at most wait at a time.
        width = int(getattr(self.config, "hidden_size", 0))
        waiting = self.compute.states_on(3 * windows * length * width * self.dtype.itemsize)
        with self._layers_as(recorders):
            # Where no window is this process's, one tells what layers are called with.
            for piece in pieces or [MicroBatch(0, slice(0, 1))]:
                part = tokens[piece.windows].to(self.device)
                base(input_ids=part, use_cache=False)
                states.append(recorders[0].hidden.to(waiting, copy=True))
                if tuple(part.shape) not in calls:
                    calls[tuple(part.shape)] = [r.call or ((), {}) for r in recorders]
        for name in self._outside_layers():
            _release(self.model.get_submodule(name))
        shape = windows, length, states[0].shape[-1]
        return Hidden(states[: len(pieces)], calls, pieces, shape, world().owned(self.compute.lanes), self.device)

    @contextmanager
    def _layers_as(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Other modules in the decoder layers' place."""
        parent, _, child = self.architecture.layers.rpartition(".")
        owner = self.model.get_submodule(parent)
        setattr(owner, child, nn.ModuleList(layers))
        try:
            yield
        finally:
            setattr(owner, child, self._container)

    def load_head(self) -> None:
        """Make everything outside the layers resident; a tied head gets the embeddings' weights."""
        self._load_named(self._outside_layers())
        head = self.model.get_submodule(self.architecture.head)
        if self.stored_name(f"{self.architecture.head}.weight") in self.shards:
            self._load_named([self.architecture.head])
        else:
            head.weight = self.model.get_input_embeddings().weight

    def logits_from(self, hidden: Tensor, tokens: Tensor, layers: Sequence[nn.Module] = ()) -> Tensor:
        """Logits (batch, length, vocabulary) of hidden states that enter the last `len(layers)` layers, through the stock
        model.

        `load_head` must have been called; gradients flow back to `hidden`.
        """
        depth = self.n_layers - len(layers)
        before = [_Inject(hidden)] * depth  # layers that pick their mask by index keep their index
        if depth == 0:
            raise ValueError("hidden states entering layer 0 are the embeddings: run the model itself")
        with self._layers_as([*before, *layers]):
            return self.model(input_ids=tokens, use_cache=False).logits

    def gradients_at_top(self, hidden: Hidden, tokens: Tensor) -> list[Tensor]:
        """∂ Σ nll / ∂ hidden states after the last layer, by micro-batch."""
        self.load_head()
        out: list[Tensor] = []
        for piece, state in zip(hidden.pieces, hidden.read(), strict=True):
            parts: list[Tensor] = []
            for some, ids in self._for_the_head(state, tokens[piece.windows]):
                leaf = some.detach().requires_grad_()
                loss = self._losses(leaf, ids).sum()
                if not bool(torch.isfinite(loss)):
                    raise ValueError(
                        f"the loss of calibration windows from {piece.windows.start} on is not finite; use dtype float32 or "
                        "other text"
                    )
                parts += torch.autograd.grad(loss, leaf)
            out.append(torch.cat(parts).to(hidden.states[len(out)].device))
        self._release_head()
        return out

    @torch.no_grad()
    def nll_at_top(self, hidden: Hidden, tokens: Tensor) -> float:
        """Mean loss in nats per predicted token, of hidden states after the last layer; over the windows of all processes.

        Raises NotFiniteError where the logits are not finite.
        """
        self.load_head()
        by_window: list[float] = []
        for piece, state in zip(hidden.pieces, hidden.read(), strict=True):
            for some, ids in self._for_the_head(state, tokens[piece.windows]):
                by_window += self._losses(some, ids).cpu().double().sum(dim=1).tolist()
        self._release_head()
        # Exactly rounded: whatever order the processes' windows come in.
        total = math.fsum(loss for losses in world().everyone(by_window) for loss in losses)
        if not math.isfinite(total):
            raise NotFiniteError("the loss is NaN or infinite")
        return total / (tokens.shape[0] * (tokens.shape[1] - 1))

    def _losses(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """nll of every prediction of hidden states after the last layer, (windows, length − 1) float32."""
        logits, wanted = self.logits_from(hidden, tokens)[:, :-1], tokens[:, 1:]
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), reduction="none").view(wanted.shape)

    def _for_the_head(self, state: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """A micro-batch in parts whose logits are of bounded size."""
        together = max(1, LOGITS_ELEMENTS // (tokens.shape[1] * int(self.config.vocab_size)))
        yield from zip(state.split(together), tokens.to(self.device).split(together), strict=True)

    def _release_head(self) -> None:
        """Drop what `load_head` made resident."""
        for name in (*self._outside_layers(), self.architecture.head):
            _release(self.model.get_submodule(name))

    def _outside_layers(self) -> tuple[str, ...]:
        """Modules with parameters outside the layers and the head, as the dry pass needs them."""
        head, layers = self.architecture.head, self.architecture.layers
        named = [
            name for name, module in self.model.named_modules() if name and any(True for _ in module.parameters(recurse=False))
        ]
        return tuple(n for n in named if n != head and not n.startswith(layers + "."))


def _release(module: nn.Module) -> None:
    """Drop the weights. Not by .to("meta"): that would lose buffers that are computed once and never stored."""
    module.load_state_dict({k: torch.empty_like(v, device="meta") for k, v in module.state_dict().items()}, assign=True)
