"""What the reports of the MLP controls count is what the checkpoints hold."""

import json

import pytest
from recipes_for_tests import tiny_folder, tiny_recipe
from safetensors import safe_open

from compress.fitting import run

STEPS = [
    {"method": "skip_mlp", "output": "identity"},
    {"method": "skip_mlp", "output": "mean"},
    {"method": "mlp_bottleneck", "inputs": 6, "outputs": 3},
    {"method": "affine_mlp", "rank": 4},
    {"method": "affine_mlp", "through": {"inputs": 5, "outputs": 3}},
]


def numbers(folder, prefix):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys() if name.startswith(prefix))  # noqa: SIM118


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"), "llama")


@pytest.mark.parametrize("step", STEPS, ids=lambda step: " ".join(map(str, step.values())))
def test_targeted_parameters_are_counted(source, tmp_path, step):
    folder = run.fit(tiny_recipe(source, tmp_path, {**step, "layers": [1]}))
    found = json.loads((folder / "report.json").read_text())["parameters"]
    assert found["targeted_baseline"] == numbers(source, "model.layers.1.mlp.")
    assert found["targeted_compressed"] == numbers(folder, "model.layers.1.mlp.")
