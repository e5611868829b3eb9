"""Candidates measured from cached hidden states: a trial starts at the layer it changes, never at the embeddings.

    tokens ──original model, once──► hidden states before each layer, in files ──layers i … last──► log-probabilities

Going from the last layer to the first, the layers before the one at hand are still the original's: the cache stays right.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress import kinds
from compress.loading.modules import Find, install
from compress.methods.base import Replacement
from compress.searching.metrics import Accuracy, Perplexity
from compress.stream.hidden import Boundaries
from compress.stream.model import StreamedModel


class Split:
    """One set of rows and the original model's hidden states before each layer from `first` on, kept under `folder`."""

    def __init__(
        self, model: StreamedModel, metric: Perplexity | Accuracy, folder: Path, first: int, tick: Callable[[], None]
    ) -> None:
        self.model, self.metric = model, metric
        tokens = metric.tokens
        self._hidden = model.embed(tokens, model.compute.pieces(*tokens.shape))
        self._boundaries = Boundaries(folder, self._hidden)
        model.load_head()
        for index in range(model.n_layers):
            # No trial starts below `first`.
            if index >= first:
                self._boundaries.save(index)
            with model.resident(index) as layer:
                self._hidden.advance(layer, index, model.architecture.layer(index))
            tick()
        self._entered: int | None = None
        # No layer is left to run: the hidden states are those that the last one gave.
        self.baseline = metric.value(self._log_probabilities(model.n_layers, ()))
        if not math.isfinite(self.baseline):
            raise RuntimeError("the original model's loss on the search text is not finite; give other text")

    def measure(self, index: int, layers: Sequence[nn.Module]) -> float:
        """The metric with `layers` in place of the original's from `index` to the last; inf where the candidate overflows."""
        # Trials of one layer follow each other: its states are read once for all of them.
        if self._entered != index:
            self._boundaries.load(index)
            self._entered = index
        return self.metric.value(self._log_probabilities(index, layers))

    def close(self) -> None:
        """Delete the files of hidden states."""
        self._boundaries.delete()

    @torch.no_grad()
    def _log_probabilities(self, index: int, layers: Sequence[nn.Module]) -> Tensor:
        """Sum over each row's predictions that count, (n,) float64."""
        out = []
        for piece, state in zip(self._hidden.pieces, self._hidden.read(), strict=True):
            asked, tokens = self.metric.asked[piece.windows], self.metric.tokens[piece.windows].to(state.device)
            hidden = state
            for offset, layer in enumerate(layers):
                # What the original layer was called with at this shape: masks and rotary tables do not depend on weights.
                hidden = self._hidden.call(layer, index + offset, hidden)
            logits = self.model.logits_from(hidden, tokens)[:, :-1]
            # Softmax in float32 and the sum in float64, whatever the model computes in.
            losses = functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
            out.append(-(losses.view(asked.shape).cpu().double() * asked).sum(dim=1))
        return torch.cat(out)


class Tail:
    """The layers from the one at hand to the last, in memory, with what was decided installed."""

    def __init__(self, model: StreamedModel, stored_in: torch.dtype) -> None:
        self.model, self.stored_in = model, stored_in
        self.first = model.n_layers
        self.layers: list[nn.Module] = []
        self._originals: dict[str, nn.Module] = {}  # of modules that were replaced

    def reach(self, index: int) -> None:
        """Put the original layers down to `index` before the others."""
        while self.first > index:
            self.first -= 1
            with self.model.resident(self.first) as layer:
                # A copy stays when the streamed layer's memory goes to the next one.
                self.layers.insert(0, copy.deepcopy(layer))

    def install(self, replacement: Replacement) -> None:
        """Put a replacement in as the checkpoint will hold it: rounded to the stored dtype, computed with in the stream's."""
        types = {"stored_in": self.stored_in, "computed_in": self.model.dtype, "device": self.model.device}
        install(replacement.specs, replacement.tensors, find=self._kept(replacement), put=self._put, **types)

    def _kept(self, replacement: Replacement) -> Find:
        """What modules are built around: the original of a place that was replaced before, a copy for the kinds that keep and
        change it.
        """
        wrapping = {spec.module for spec in replacement.specs if kinds.load(spec.kind).wraps}
        built: set[str] = set()

        def find(name: str) -> nn.Module:
            if name in built or all(spec.module != name for spec in replacement.specs):
                return self._find(name)  # asked for to be linked
            built.add(name)
            # What stands there before the first replacement is the original, for every later candidate too.
            original = self._originals.setdefault(name, self._find(name))
            return copy.deepcopy(original) if name in wrapping else original

        return find

    @contextmanager
    def trying(self, replacement: Replacement) -> Iterator[None]:
        """The replacement is in place inside the block, and what it replaced is back after it."""
        before: Mapping[str, nn.Module] = {spec.module: self._find(spec.module) for spec in replacement.specs}
        self.install(replacement)
        try:
            yield
        finally:
            for name, module in before.items():
                self._put(name, module)

    def _find(self, name: str) -> nn.Module:
        # Layer number, and the name below the layer.
        index, _, rest = name.removeprefix(self.model.architecture.layers + ".").partition(".")
        return self.layers[int(index) - self.first].get_submodule(rest)

    def _put(self, name: str, module: nn.Module) -> None:
        owner, _, child = name.rpartition(".")
        self._find(owner).register_module(child, module)
