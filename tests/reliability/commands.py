"""Every command that writes, on tiny models: what it finds before it, and what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# What the children need is imported here, once.
import matplotlib.pyplot
import onnxruntime
from recipes_for_tests import evaluated_recipe, symbolic_step, tiny_folder, tiny_recipe
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.generation import utils
from transformers.models.auto import tokenization_auto

from compress import methods
from compress.api import checkpoint, finished
from compress.evaluating import clamping
from compress.explaining import fronts
from compress.fitting import finetune, run
from compress.measuring import run as benchmark
from compress.recipe import Recipe
from compress.regression.engines import sparse
from compress.reporting import write
from compress.searching import layers, ranks, sweep
from exporters.onnx import graph
from exporters.torch import parity, source

TRANSFORMERS = (LlamaForCausalLM, PreTrainedTokenizerFast, utils, tokenization_auto)
LOADED = (matplotlib, onnxruntime, checkpoint, clamping, finished, finetune, benchmark, sparse, write, graph, parity, source)
METHODS = [methods.load(name) for name in methods.names()]
LOW_RANK = {"method": "feature_space", "targets": {"roles": ["v", "down"]}, "rank": {"keep": 0.5}}
SIZES = {"search_windows": 4, "test_windows": 4, "length": 16}


def _low_rank(root: Path) -> Recipe:
    return evaluated_recipe(root / "model", root / "out", LOW_RANK)


def _symbolic(root: Path) -> Recipe:
    return tiny_recipe(root / "model", root / "out", symbolic_step(2, 3))


def _tuned(root: Path) -> Recipe:
    levers = {"propagate_error": True, "refine": {"steps": 4, "batch": 2}, "finetune": {"steps": 4, "lr": 0.01, "batch": 2}}
    return tiny_recipe(
        root / "model",
        root / "out",
        {**LOW_RANK, "layers": [0], "targets": {"roles": ["v", "down"]}},
        symbolic_step(2, 2),
        **levers,
    )


def _bench(root: Path) -> object:
    sizes = {"contexts": [8], "prefill_length": 8, "steps": 2, "repeats": 2, "warmup": 1, "cold_starts": 0}
    out = root / "out" / "bench" / "results.json"
    return benchmark.bench([root / "out"], runtimes=["eager"], devices=["cpu"], **sizes, out=out)


@dataclass(frozen=True)
class Command:
    """`before` makes what the command finds under a root (a model is there already), `act` is the command."""

    before: Callable[[Path], object]
    act: Callable[[Path], object]
    replaces: bool = False  # a whole checkpoint that is there before: it is the old or the new one at any time


def _sweep(root: Path) -> object:
    plain = {"model": str(root / "model"), "output": str(root / "out"), "steps": [LOW_RANK]}
    plain["calibration"] = {"text": str(root / "model" / "text.txt"), "sequences": 8, "length": 16}
    plain["evaluation"] = {"texts": {"own": str(root / "model" / "text.txt")}, "length": 16, "sequences": 2}
    return sweep.sweep(plain, ["steps.0.rank.keep=0.6,0.4"])


def _export(root: Path) -> object:
    return finished.export(root / "out", torch=True)


def _nothing(root: Path) -> None:
    """Only the model is there."""


COMMANDS = {
    "fit": Command(_nothing, lambda root: run.fit(_low_rank(root))),
    "fit, searched, refined, tuned": Command(_nothing, lambda root: run.fit(_tuned(root))),
    "fit over another fit": Command(
        lambda root: run.fit(_symbolic(root)), lambda root: run.fit(_low_rank(root)), replaces=True
    ),
    "pick": Command(lambda root: run.fit(_symbolic(root)), lambda root: fronts.pick(root / "out", 1, 1, 1), replaces=True),
    "export torch": Command(lambda root: run.fit(_low_rank(root)), _export),
    "export torch again": Command(lambda root: (run.fit(_low_rank(root)), _export(root)), _export),
    "export onnx": Command(lambda root: run.fit(_low_rank(root)), lambda root: finished.export(root / "out", onnx=True)),
    "sweep": Command(_nothing, _sweep),
    "search": Command(
        _nothing, lambda root: ranks.search(_low_rank(root), ranks.SearchOptions.model_validate(SIZES | {"tolerance": 0.2}))
    ),
    "layers": Command(
        _nothing,
        lambda root: layers.choose_layers(
            evaluated_recipe(root / "model", root / "out", symbolic_step(2, 2)), layers.LayerOptions.model_validate(SIZES)
        ),
    ),
    "bench": Command(lambda root: run.fit(_low_rank(root)), _bench),
    "report": Command(
        lambda root: (run.fit(_low_rank(root)), _bench(root)),
        lambda root: finished.report(root / "out" / "bench" / "results.json"),
    ),
}


def model(root: Path) -> None:
    """The model that all commands start from."""
    tiny_folder(root / "model", "llama")
