"""A whole fit with its layers on another device, simulated: none of its tensors meets one of the CPU, and the losses agree."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from long import LONG
from recipes_for_tests import symbolic_step, tiny_recipe

from compress.fitting import run

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize(("model_type", "offload"), CASES if LONG else [("qwen2", "always")])
def test_a_fit_on_a_device_with_float64_is_the_cpus(folders, tmp_path, model_type, offload):
    recipe = tiny_recipe(folders(model_type), tmp_path / "cpu", *STEPS[model_type], **LEVERS)
    run.fit(recipe)
    on_device(recipe, tmp_path, "float64", offload)
    assert losses(tmp_path / "there") == pytest.approx(losses(tmp_path / "cpu"), abs=1e-3)


@pytest.mark.parametrize("path", ["blocks", "host"] if LONG else ["host"])
def test_a_fit_on_a_device_without_float64_is_as_good(folders, tmp_path, path):
    recipe = tiny_recipe(folders("llama"), tmp_path / "cpu", *STEPS["llama"], propagate_error=True)
    run.fit(recipe)
    on_device(recipe, tmp_path, path, "never")
    assert losses(tmp_path / "there") == pytest.approx(losses(tmp_path / "cpu"), abs=1e-4)


def losses(folder):
    """What every lever gives on the held-out windows."""
    quality = json.loads((folder / "report.json").read_text())["quality"]
    return [quality["dense_nll"], *(lever["nll"] for lever in quality["levers"])]


def on_device(recipe, tmp_path, path, offload):
    """The same fit on the simulated device."""
    file = tmp_path / "there.yaml"
    file.write_text(recipe.model_copy(update={"output": tmp_path / "there"}).to_yaml())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    command = [sys.executable, "-m", "simulated_device", str(file), path, offload]
    subprocess.run(command, env=environment, check=True)
