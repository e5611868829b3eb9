"""The second pass: later layers see what the earlier ones became, and each decoder layer is mended as a whole.

Two streams of hidden states move through the model together, x of the original and x' of the compressed one.
`propagate_error` refits each linear on x' with the original's outputs as targets (reduced-rank regression); `refine` then
optimises a layer's factors and biases for a few steps against the ORIGINAL layer's outputs, as AA-SVD does. One layer is
resident; each finished layer is a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint.files import hash_json
from compress.checkpoint.units import Artefact, hash_tensors, read_unit, write_unit
from compress.fitting.calibrate import Gradients
from compress.fitting.propagate import propagate
from compress.fitting.refine import refine
from compress.fitting.twin import Part, Twin
from compress.methods.base import Replacement
from compress.plan import ModuleSpec
from compress.recipe import Refinement
from compress.stream.hidden import Hidden
from compress.stream.model import StreamedModel

FORMAT = 3  # raise when the content of the layer files changes meaning


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
        self, tokens: Tensor, batch: int, layers: Sequence[Sequence[Part]], source_hash: str, tick: Callable[[], None]
    ) -> list[list[Replacement]]:
        """Replacements by layer. Finished layers of an interrupted run are taken over."""
        original = self.model.embed(tokens, batch)
        # A stream of its own from here on; the call arguments are the same for both.
        compressed = Hidden([state.clone() for state in original.states], original.calls)
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
        done, closed = read_unit(file, fingerprint), parts
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
            done = Artefact(_tensors(twin, parts), {"parts": [_described(p.replacement, note) for p in parts]})
            write_unit(file, done, fingerprint)
        # From the artefact and the closed form in either case, so that a resumed run goes on with the same numbers.
        replacements = [
            _finished(part.replacement, described, done.tensors)
            for part, described in zip(closed, done.metadata["parts"], strict=True)
        ]
        for replacement in replacements:
            twin.install(replacement)
        compressed.advance(twin.student, index, twin.name)
        return replacements


def _tensors(twin: Twin, parts: Sequence[Part]) -> dict[str, Tensor]:
    state = twin.student.state_dict()
    return {name: state[twin.inside(name)].clone() for part in parts for name in part.replacement.tensors}


def _described(replacement: Replacement, note: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON half of a finished replacement: refitting may have changed its specs."""
    specs = [spec.model_dump(mode="json") for spec in replacement.specs]
    return {"specs": specs, "report": [{**row, **note} for row in replacement.report]}


def _finished(start: Replacement, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Replacement:
    """The replacement of a finished layer's file. Floats become float64, to be stored in the model's dtype, unless they began
    as explicit float32.
    """
    specs = tuple(ModuleSpec.model_validate(spec) for spec in described["specs"])
    mine = tuple(f"{spec.module}." for spec in specs)
    explicit = {name for name, value in start.tensors.items() if value.dtype == torch.float32}
    own = {name: value for name, value in tensors.items() if mine and name.startswith(mine)}
    stored = {k: v.double() if v.is_floating_point() and k not in explicit else v for k, v in own.items()}
    return replace(start, specs=specs, tensors=stored, report=tuple(described["report"]))


def _identity(part: Part) -> Any:
    """What a finished layer depends on, of one part: its first-pass factors and the method with its decided rank."""
    return [
        part.unit.group.modules,
        part.method.model_dump(mode="json"),
        hash_tensors(part.replacement.tensors),
    ]
