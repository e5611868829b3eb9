"""A whole fit with its layers on another device, simulated: none of its tensors meets one of the CPU, and the losses agree."""

import json

import pytest
import torch
from long import LONG
from recipes_for_tests import symbolic_step, tiny_recipe
from simulated_device import Simulated

from compress.compute import Compute
from compress.fitting import run
from compress.numerics import products

STEPS = {
    "llama": [
        {
            "method": "whitened_svd",
            "importance": "fisher",
            "form": "pivoted",
            "rank": {"budget": 0.6},
            "targets": {"roles": ["q", "o"]},
        },
        symbolic_step(2, 2),
    ],
    "gpt2": [
        {"method": "feature_space", "rank": {"keep": 0.5}, "targets": {"roles": ["o"]}},
        {"method": "residual_mlp", "layers": [1], "latents": {"inputs": 2, "outputs": 2}},
    ],
    "qwen2": [{"method": "latent_kv", "cache": 0.5, "layers": [0]}, {"method": "crystallized_attention", "layers": [1]}],
}
LEVERS = {"propagate_error": True, "refine": {"steps": 2, "batch": 4}, "finetune": {"steps": 2, "batch": 4}}


CASES = [(model_type, offload) for model_type in STEPS for offload in ("always", "never")]


@pytest.mark.parametrize(("model_type", "offload"), CASES if LONG else [("llama", "never"), ("qwen2", "always")])
def test_a_fit_on_a_device_with_float64_is_the_cpus(folders, tmp_path, monkeypatch, model_type, offload):
    recipe = tiny_recipe(folders(model_type), tmp_path / "cpu", *STEPS[model_type], **LEVERS)
    run.fit(recipe)
    monkeypatch.setattr(products, "path", lambda _: "float64")
    on_device(recipe, tmp_path, monkeypatch, offload, float64=True)
    assert losses(tmp_path / "there") == pytest.approx(losses(tmp_path / "cpu"), abs=1e-3)


def test_a_fit_on_a_device_without_float64_is_as_good(folders, tmp_path, monkeypatch):
    recipe = tiny_recipe(folders("llama"), tmp_path / "cpu", *STEPS["llama"], propagate_error=True)
    run.fit(recipe)
    on_device(recipe, tmp_path, monkeypatch, "never", float64=False)
    assert losses(tmp_path / "there") == pytest.approx(losses(tmp_path / "cpu"), abs=1e-4)


def losses(folder):
    """What every lever gives on the held-out windows."""
    quality = json.loads((folder / "report.json").read_text())["quality"]
    return [quality["dense_nll"], *(lever["nll"] for lever in quality["levers"])]


def on_device(recipe, tmp_path, monkeypatch, offload, float64):
    """The same fit on the simulated device."""
    waiting = torch.device("cpu") if offload == "always" else torch.device("simulated", 0)
    monkeypatch.setattr(Compute, "on", lambda _: torch.device("simulated", 0))
    monkeypatch.setattr(Compute, "states_on", lambda *_: waiting)
    with Simulated(float64) as device:
        run.fit(recipe.model_copy(update={"output": tmp_path / "there"}))
    assert device.operations > 1000
