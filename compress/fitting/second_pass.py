"""The second pass: later layers see what the earlier ones became, and each decoder layer is mended as a whole.

Two streams of hidden states move through the model together, x of the original and x' of the compressed one.
`propagate_error` refits each linear on x' with the original's outputs as targets (reduced-rank regression); `refine` then
optimises a layer's factors and biases for a few steps against the ORIGINAL layer's outputs, as AA-SVD does. One layer is
resident; each finished layer is a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint.files import hash_json
from compress.checkpoint.units import Artefact, hash_tensors, read_unit, write_unit
from compress.fitting.calibrate import Gradients
from compress.fitting.propagate import propagate
from compress.fitting.refine import refine
from compress.fitting.twin import Part, Twin, described, recalled
from compress.methods.base import Replacement
from compress.parallel.world import world
from compress.recipe import Refinement
from compress.stream.hidden import Hidden
from compress.stream.model import StreamedModel

FORMAT = 4  # raise when the content of the layer files changes meaning


@dataclass(frozen=True)
class SecondPass:
    """What the pass needs besides the streams."""

    model: StreamedModel
    propagate_error: bool
    refinement: Refinement | None
    storage_dtype: torch.dtype  # replacements are rounded to it before later layers see them
    seed: int
    work: Path
    gradients: Gradients

    def run(
        self, tokens: Tensor, layers: Sequence[Sequence[Part]], source_hash: str, tick: Callable[[], None]
    ) -> list[list[Replacement]]:
        """Replacements by layer. Finished layers of an interrupted run are taken over."""
        original = self.model.embed(tokens)
        compressed = original.twin()
        out = []
        fingerprint = hash_json([FORMAT, source_hash, self.propagate_error, self.refinement])
        for index, parts in enumerate(layers):
            # Each layer's fingerprint holds those before it: another rank in layer 0 changes what all later ones see.
            fingerprint = hash_json([fingerprint, [_identity(part) for part in parts]])
            with self.model.resident(index) as layer:
                out.append(self._layer(layer, index, parts, original, compressed, fingerprint))
            tick()
        return out

    def _layer(
        self, layer: nn.Module, index: int, parts: Sequence[Part], original: Hidden, compressed: Hidden, fingerprint: str
    ) -> list[Replacement]:
        file = self.work / "refined" / f"{index}.{fingerprint[:12]}.safetensors"
        done, closed = self._finished(file, fingerprint), parts
        twin = Twin(self.model, index, layer, self.storage_dtype, self.gradients, self.seed)
        if done is None and self.propagate_error:
            parts = propagate(twin, parts, original, compressed)
        # Installed again after propagation, which tries refits in the student.
        for part in parts:
            twin.install(part.replacement)
        # Kept before the stream moves: refinement needs what enters the original layer and what leaves it.
        inputs = [state.clone() for state in original.states]
        original.advance(layer, index, twin.name)
        if done is None:
            note: dict[str, Any] = {}
            if self.refinement is not None and parts:
                note = refine(twin, self.refinement, parts, inputs, original, compressed)
            done = Artefact(_tensors(twin, parts), {"parts": [described(p.replacement, note) for p in parts]})
            if world().first:
                write_unit(file, done, fingerprint)
        # From the artefact and the closed form in either case, so that a resumed run goes on with the same numbers.
        replacements = [
            recalled(part.replacement, description, done.tensors)
            for part, description in zip(closed, done.metadata["parts"], strict=True)
        ]
        for replacement in replacements:
            twin.install(replacement)
        compressed.advance(twin.student, index, twin.name)
        return replacements

    def _finished(self, file: Path, fingerprint: str) -> Artefact | None:
        """What an earlier run left of a layer: every process finds it, or none is to."""
        there = world().agreed(lambda: read_unit(file, fingerprint, only=()) is not None)
        return read_unit(file, fingerprint) if there else None


def _tensors(twin: Twin, parts: Sequence[Part]) -> dict[str, Tensor]:
    state = twin.student.state_dict()
    return {name: state[twin.inside(name)].to("cpu", copy=True) for part in parts for name in part.replacement.tensors}


def _identity(part: Part) -> Any:
    """What a finished layer depends on, of one part: its first-pass factors and the method with its decided rank."""
    return [
        part.unit.group.modules,
        part.method.model_dump(mode="json"),
        hash_tensors(part.replacement.tensors),
    ]
