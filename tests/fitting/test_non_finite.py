"""A number that is not finite, in the weights or on the way, stops the fit and names the module."""

import pytest
from recipes_for_tests import tiny_folder, tiny_recipe
from safetensors.torch import load_file, save_file

from compress.fitting import run


@pytest.mark.parametrize("where", ["weights", "activations"])
def test_non_finite_numbers_name_the_module(tmp_path, where):
    source = tiny_folder(tmp_path / "source", "llama")
    weights = load_file(source / "model.safetensors")
    if where == "weights":
        weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    else:
        weights["model.layers.1.mlp.up_proj.weight"] *= 1e38
        weights["model.layers.1.mlp.gate_proj.weight"] *= 1e38
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.layers\.1"):
        run.fit(tiny_recipe(source, tmp_path / "out", {"method": "feature_space", "rank": {"keep": 0.5}}))
