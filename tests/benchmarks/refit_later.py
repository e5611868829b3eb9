"""Whether surrogates of later MLPs gain from being fitted on what the surrogates before them leave.

    python tests/benchmarks/refit_later.py [--calibration FILE --validation FILE --windows 170]

Layers 1, 3 and 4 of novella, once fitted on the original's inputs, once in order with the earlier ones in place, their target
the original MLP's output on the changed inputs. Prints perplexities. Nothing is kept on disk.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from compress.fitting import run
from compress.fitting.assemble import storage_dtype
from compress.fitting.decide import first_pass_of, replacements_of
from compress.fitting.job import prepare, source_hash_of, tokens_of
from compress.methods.base import Replacement
from compress.progress import silent
from compress.recipe import parse_recipe
from compress.searching.cached_states import Tail
from compress.stream.model import StreamedModel
from compress.stream.original import Original

LAYERS = (1, 3, 4)
STEPS: dict[str, dict[str, Any]] = {
    "neurons with an affine map": {"method": "residual_mlp", "latents": {"kind": "neurons", "outputs": 16}, "affine": 16},
    "affine map": {"method": "affine_mlp", "rank": 42},
    "pruned channels": {"method": "prune_channels", "channels": 28, "importance": "fisher"},
}


class Changed(StreamedModel):
    """The model with some layers' modules replaced."""

    def __init__(self, original: Original) -> None:
        super().__init__(original.weights, original.config)
        self.installed: dict[int, Replacement] = {}

    @contextmanager
    def resident(self, index: int) -> Iterator[nn.Module]:
        with super().resident(index) as layer, ExitStack() as stack:
            if index in self.installed:
                tail = Tail(self, storage_dtype(self))
                tail.first, tail.layers = index, [layer]
                stack.enter_context(tail.trying(self.installed[index]))
            yield layer


def perplexity(base: dict[str, Any], step: dict[str, Any], refit: bool) -> float:
    made: dict[int, Replacement] = {}
    for layer in LAYERS:
        job = prepare(parse_recipe({**base, "steps": [{**step, "layers": [layer]}]}))
        model = Changed(job.original)
        model.installed = dict(made) if refit else {}
        job, tokens = dataclasses.replace(job, model=model), tokens_of(job)
        source_hash = f"{source_hash_of(job, tokens)} behind {sorted(model.installed)}"
        first_pass_of(job, source_hash).run(job.units, tokens, silent)
        (made[layer],) = replacements_of(job, job.variants["compressed"], source_hash)
    job = prepare(parse_recipe({**base, "steps": [{**step, "layers": list(LAYERS)}]}))
    return run.evaluate(job, {"compressed": list(made.values())}, silent)["compressed"]["text"]["perplexity"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calibration", default="novella")
    parser.add_argument("--validation", default="novella")
    parser.add_argument("--windows", type=int, default=160)
    options = parser.parse_args()
    for name, step in STEPS.items():
        found = []
        for refit in (False, True):
            with TemporaryDirectory() as folder:
                base = {
                    "model": "novella",
                    "calibration": {"text": options.calibration, "sequences": 384, "length": 256, "seed": 0},
                    "evaluation": {"texts": {"text": options.validation}, "length": 256, "sequences": options.windows},
                    "output": folder,
                }
                found.append(perplexity(base, step, refit))
        print(f"{name}: {found[0]:.2f} on the original's inputs, {found[1]:.2f} refitted in order", flush=True)


if __name__ == "__main__":
    main()
