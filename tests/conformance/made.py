"""The checkpoint of a case, made once for all its checks: fitted from a recipe, or noise under a random plan."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from checkpoints import random_plan, randomize, tiny_model
from recipes_for_tests import IDS, logits, tiny_folder, tiny_recipe
from torch import Tensor

from compress.fitting import run
from compress.fitting.assemble import load_variant
from compress.fitting.channel_order import with_free_orders
from compress.fitting.decide import replacements_of
from compress.fitting.job import Job, prepare, source_hash_of
from compress.loading.modules import apply_plan
from compress.loading.quantizer import attach_plan
from compress.loading.remote_code import write_remote_code
from compress.recipe import Recipe
from conformance.case import Case


class Refused(Exception):
    """The code under test says, before anything is computed, that a case is not supported."""


@dataclass(frozen=True)
class Sources:
    """Random original models, one folder per architecture and number of layers; made where they are first asked for."""

    root: Path
    seed: int = 0
    _made: dict[tuple[str, int], Path] = field(default_factory=dict)

    def folder(self, case: Case) -> Path:
        key = (case.architecture, case.layers)
        if key not in self._made:
            folder = self.root / f"{case.architecture}-{case.layers}-{self.seed}"
            self._made[key] = tiny_folder(folder, case.architecture, self.seed, **layer_count(*key))
        return self._made[key]


def layer_count(model_type: str, layers: int) -> dict[str, Any]:
    """What makes the tiny config that deep."""
    count = {"n_layer" if model_type == "gpt2" else "num_hidden_layers": layers}
    return count | ({"no_rope_layers": [1, 0][:layers]} if model_type == "smollm3" else {})


@dataclass(frozen=True)
class Made:
    """A case with its checkpoint."""

    case: Case
    root: Path  # free to be written to
    sources: Sources

    def recipe(self, name: str = "out", **options: Any) -> Recipe:
        """The case's method over all layers; `options` on top of its example."""
        step = {"method": self.case.name, "layers": "all", **self.case.options, **options}
        return tiny_recipe(self.sources.folder(self.case), self.root / name, step)

    def fit(self, name: str = "out", **options: Any) -> Path:
        """Run the recipe. Raises Refused where the method does, from shapes alone."""
        try:
            recipe = self.recipe(name, **options)
            prepare(recipe)
        except (ValueError, NotImplementedError) as error:
            raise Refused(str(error)) from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run.fit(recipe)

    @cached_property
    def folder(self) -> Path:
        """The checkpoint, with the file that lets it load elsewhere. Raises Refused."""
        if self.case.what == "method":
            return self.fit()
        self._planned.save_pretrained(self.root / "out")
        write_remote_code(self.root / "out")
        return self.root / "out"

    @cached_property
    def _planned(self) -> Any:
        model = tiny_model(self.case.architecture, self.sources.seed)
        plan = random_plan(model, self.case.name)
        apply_plan(model, plan)
        for position, spec in enumerate(plan.modules):
            randomize(model.get_submodule(spec.module), self.sources.seed + 1 + position)
        attach_plan(model, plan)
        return model.eval()

    @cached_property
    def job(self) -> Job:
        return prepare(self.recipe())

    @cached_property
    def source_hash(self) -> str:
        return source_hash_of(self.job)

    def in_memory(self) -> Tensor:
        """Logits of the model that was never written, (2, 30, vocabulary)."""
        with torch.no_grad():
            if self.case.what == "kind":
                return self._planned(IDS).logits
            made: Sequence[Any] = replacements_of(self.job, self.job.variants["compressed"], self.source_hash)
            return load_variant(self.job.model, with_free_orders(self.job.model, made))(IDS).logits

    @cached_property
    def logits(self) -> Tensor:
        """Of the checkpoint, as plain transformers loads it here, (2, 30, vocabulary)."""
        return logits(self.folder)


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Of max(1, |logit|). Raises AssertionError with the numbers; NaN is no agreement."""
    difference, limit = float((found - expected).abs().max()), tolerance * max(1.0, float(expected.abs().max()))
    assert difference <= limit, f"logits differ by {difference:.3g}, above {limit:.3g}"
