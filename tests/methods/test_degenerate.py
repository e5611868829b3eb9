"""Models that random ones never are: every method ends with finite numbers on them, or with one line of an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from recipes_for_tests import tiny_folder, tiny_recipe
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from compress import methods
from compress.fitting import run
from compress.fitting.assemble import stored_tensors
from compress.methods.base import Replacement
from compress.recipe import Recipe
from compress.stream.model import StreamedModel
from compress.stream.original import OnDisk

Weights = dict[str, torch.Tensor]
LAYER = "model.layers.1."


def silent_block(weights: Weights) -> None:
    """A block whose output projections are zero, as block expansion adds them: the loss feels nothing of it."""
    for name in weights:
        if name.startswith(LAYER) and ("o_proj" in name or "down_proj" in name):
            weights[name].zero_()


def zero_linears(weights: Weights) -> None:
    for name in weights:
        if name.startswith(LAYER) and "norm" not in name:
            weights[name].zero_()


def constant_activations(weights: Weights) -> None:
    weights["model.embed_tokens.weight"][:] = weights["model.embed_tokens.weight"][0].clone()


def few_directions(weights: Weights) -> None:
    embedding = weights["model.embed_tokens.weight"]
    embedding[:] = embedding[:, :2] @ embedding[:2]


def one_enormous_activation(weights: Weights) -> None:
    """In one channel at some tokens, as the first tokens of real models have it."""
    weights["model.embed_tokens.weight"][:3, 5] = 3e4


DEGENERATE: list[Callable[[Weights], None]] = [
    silent_block,
    zero_linears,
    constant_activations,
    few_directions,
    one_enormous_activation,
]


def degenerate(folder: Path, spoil: Callable[[Weights], None]) -> Path:
    tiny_folder(folder, "llama")
    weights = load_file(folder / "model.safetensors")
    spoil(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def steps() -> list[dict[str, object]]:
    """Every method with its first example, and with the loss weight where it has one."""
    found = []
    for name in methods.names():
        method = methods.load(name)
        weighted = {"importance": "fisher"} if "importance" in method.model_fields else {}
        found.append({"method": name, **method.examples[0], **weighted, "layers": [1]})
    return found


def finite_or_refused(recipe: Recipe) -> None:
    refusal = ""
    try:
        folder = run.fit(recipe)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal.strip()
        return
    written = load_file(folder / "model.safetensors")
    assert not [name for name, tensor in written.items() if tensor.is_floating_point() and not tensor.isfinite().all()]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {spoil: degenerate(tmp_path_factory.mktemp("model"), spoil) for spoil in DEGENERATE}


@pytest.mark.parametrize("step", steps(), ids=lambda step: f"{step['method']}")
@pytest.mark.parametrize("spoil", DEGENERATE, ids=lambda spoil: spoil.__name__)
def test_what_is_written_is_finite_or_refused(models, tmp_path, spoil, step):
    calibration = {"text": str(models[spoil] / "text.txt"), "sequences": 12, "length": 32}
    finite_or_refused(tiny_recipe(models[spoil], tmp_path / "out", step, calibration=calibration))


@pytest.mark.parametrize("step", steps(), ids=lambda step: f"{step['method']}")
def test_a_single_token_is_finite_or_refused(folders, tmp_path, step):
    source = folders("llama")
    calibration = {"text": str(source / "text.txt"), "sequences": 1, "length": 2}
    finite_or_refused(tiny_recipe(source, tmp_path / "out", step, calibration=calibration))


def test_a_number_beyond_the_stored_dtype_is_named_and_not_written(folders):
    model = StreamedModel(OnDisk(folders("llama")).weights, AutoConfig.from_pretrained(folders("llama")))
    name = "model.layers.0.self_attn.q_proj.weight"
    half = Replacement((), {name: torch.tensor([1.0, 1e5], dtype=torch.float16)}, ())
    with pytest.raises(ValueError, match=rf"{name}: not finite as float16"):
        stored_tensors(model, half)


def test_a_silent_block_costs_no_rank(models, tmp_path):
    """With one budget over all, what the loss does not feel gets the least, and its error there is nothing."""
    step = {"method": "whitened_svd", "importance": "fisher", "rank": {"budget": 0.6}}
    folder = run.fit(tiny_recipe(models[silent_block], tmp_path / "out", step))
    rows = {row["module"]: row for row in run.read_json(folder / "report.json")["modules"]}
    silent = [row for name, row in rows.items() if name.startswith(LAYER) and "o_proj" not in name and "down_proj" not in name]
    assert {row["rank"] for row in silent} == {1}
    assert {row["relative_error"] for row in silent} == {0.0}
