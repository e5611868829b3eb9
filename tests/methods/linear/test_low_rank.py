"""Low-rank methods against each other, and with too little to go by."""

import json

import pytest
import torch
from recipes_for_tests import divergence, logits, tiny_recipe

from compress.fitting import run


def test_feature_space_beats_weight_svd_on_its_calibration_text(folders, tmp_path):
    source = folders("llama")
    kl = {}
    for method in ("feature_space", "weight_svd", "whitened_svd"):
        recipe = tiny_recipe(source, tmp_path / method, {"method": method, "rank": {"keep": 0.5}})
        kl[method] = divergence(run.fit(recipe), source, recipe)
    assert kl["feature_space"] < kl["weight_svd"]


def test_too_few_calibration_tokens_are_said_so(folders, tmp_path):
    recipe = tiny_recipe(
        folders("llama"),
        tmp_path,
        {"method": "feature_space", "rank": {"keep": 0.5}},
        calibration={"text": str(folders("llama") / "text.txt"), "sequences": 1, "length": 16},
    )
    with pytest.warns(UserWarning, match="16 calibration tokens for 32 inputs"):
        out = run.fit(recipe)
    rows = json.loads((out / "report.json").read_text())["modules"]
    assert all("calibrate on more" in row["note"] for row in rows)
    assert torch.isfinite(logits(out)).all()
