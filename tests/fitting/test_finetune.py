"""Whole-model fine-tuning: it lowers the divergence from the original, and only of what was replaced."""

import json

import pytest
import torch
from recipes_for_tests import tiny_folder, tiny_recipe
from safetensors.torch import load_file

from compress.fitting import run

STEP = {"method": "feature_space", "targets": {"roles": ["o", "up", "down"]}, "rank": {"keep": 0.4}}
TUNE = {"steps": 30, "lr": 0.01, "batch": 4, "held_out": 0.25}


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_it_lowers_the_divergence_and_leaves_the_rest_alone(model_type, tmp_path):
    source = tiny_folder(tmp_path / "source", model_type)
    plain = run.fit(tiny_recipe(source, tmp_path / "plain", STEP))
    tuned = run.fit(tiny_recipe(source, tmp_path / "tuned", STEP, finetune=TUNE))
    rows = json.loads((tuned / "report.json").read_text())["modules"]
    assert rows[0]["finetune_kl_after"] < rows[0]["finetune_kl_before"]
    before, after = (load_file(folder / "model.safetensors") for folder in (plain, tuned))
    replaced = tuple(f"{row['module']}." for row in rows)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(replaced) for name in changed)


def test_the_start_is_kept_where_no_step_helps(tmp_path):
    source = tiny_folder(tmp_path / "source", "llama")
    plain = run.fit(tiny_recipe(source, tmp_path / "plain", STEP))
    tuned = run.fit(tiny_recipe(source, tmp_path / "tuned", STEP, finetune={**TUNE, "lr": 100.0, "steps": 3}))
    before, after = (load_file(folder / "model.safetensors") for folder in (plain, tuned))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_learning_rate_far_too_high_is_halved_until_it_helps(tmp_path):
    source = tiny_folder(tmp_path / "source", "llama")
    tuned = run.fit(tiny_recipe(source, tmp_path / "tuned", STEP, finetune={**TUNE, "lr": 1.0}))
    (row, *_) = json.loads((tuned / "report.json").read_text())["modules"]
    assert row["finetune_kl_after"] < row["finetune_kl_before"]
