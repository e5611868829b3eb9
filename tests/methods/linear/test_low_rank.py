"""Low-rank methods against each other, and with too little to go by."""

import json

import pytest
import torch
from recipes_for_tests import divergence, logits, tiny_recipe

from compress.architecture import architecture
from compress.checkpoint.units import Artefact
from compress.fitting import run
from compress.methods.base import Group
from compress.methods.linear._rank_rule import RankRule
from compress.methods.linear.weight_svd import WeightSVD


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


def test_no_more_components_are_reported_than_the_factors_have():
    """A spectrum may go on beyond the factors, as the error they leave: 5 components of a matrix of rank 8, 7 asked for."""
    left, right = torch.randn(16, 5), torch.randn(5, 16)
    spectrum = torch.tensor([9.0, 7.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.5])
    metadata = {"shape": [16, 16], "rows": [16], "biased": [False]}
    artefact = Artefact({"left": left, "right": right, "spectrum": spectrum}, metadata)
    method = WeightSVD(rank=RankRule(rank=7), form="pivoted")
    done = method.replace(Group("u", 0, 0, ("m",)), artefact, architecture("llama"))
    (row,) = done.report
    assert row["rank"] == done.specs[0].options["rank"] == 5
    assert row["parameters"] == 5 * (16 + 16 - 5)
    assert row["relative_error"] == pytest.approx((2 / 28) ** 0.5)
