"""The order of an MLP's inner channels is free: rearranged for a pivoted linear, the model computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recipes_for_tests import IDS, tiny_recipe

from compress.fitting import assemble, run
from compress.fitting.channel_order import with_free_orders
from compress.fitting.decide import replacements_of
from compress.fitting.job import prepare, source_hash_of
from compress.methods.base import Replacement


def replaced(folders: Any, tmp_path: Any, model_type: str, *steps: dict[str, Any]) -> tuple[Any, list[Replacement]]:
    job = prepare(tiny_recipe(folders(model_type), tmp_path, *steps))
    run.fit(job.recipe)
    return job.model, replacements_of(job, job.variants["compressed"], source_hash_of(job))


def step(*roles: str, form: str = "pivoted", **more: Any) -> dict[str, Any]:
    return {"method": "feature_space", "targets": {"roles": list(roles)}, "form": form, "rank": {"keep": 0.7}, **more}


@pytest.mark.parametrize(
    ("model_type", "steps", "free"),
    [
        ("llama", [step("gate", "up", "down")], "gate"),
        ("qwen2", [step("gate")], "gate"),  # the others are the original's
        ("qwen2", [step("up")], "up"),
        ("llama", [step("gate", form="plain"), step("up"), step("down", form="plain")], "up"),
        ("gpt2", [step("up")], "up"),  # stored (d_in, d_out)
        ("gpt2", [step("up", "down")], "up"),
        ("opt", [step("up"), step("down", form="plain")], "up"),
        ("gpt_neox", [step("up", importance="fisher")], "up"),
    ],
    ids=lambda v: "+".join(f"{s['form']} {'-'.join(s['targets']['roles'])}" for s in v) if isinstance(v, list) else v,
)
def test_it_computes_the_same_and_stores_no_order(folders, tmp_path, model_type, steps, free) -> None:
    model, before = replaced(folders, tmp_path, model_type, *steps)
    after = with_free_orders(model, before)
    names = [{name for r in made for name in r.tensors} for made in (before, after)]
    orders = {f"{model.architecture.module(layer, free)}.order" for layer in range(model.n_layers)}
    assert orders <= names[0]
    assert not orders & names[1]
    with torch.no_grad():
        logits = [assemble.load_variant(model, made).double()(IDS).logits for made in (before, after)]
    torch.testing.assert_close(*logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [[step("down", "o")], [step("gate", form="plain")], [{"method": "affine_mlp", "rank": 4}]])
def test_others_are_left_alone(folders, tmp_path, steps) -> None:
    model, before = replaced(folders, tmp_path, "llama", *steps)
    assert with_free_orders(model, before) == before


def test_a_basis_that_gate_and_up_share_keeps_its_order(folders, tmp_path) -> None:
    shared = {"method": "shared_basis", "targets": {"roles": ["gate", "up"]}, "share": [["gate", "up"]], "form": "pivoted"}
    model, before = replaced(folders, tmp_path, "llama", {**shared, "rank": {"keep": 0.7}})
    assert with_free_orders(model, before) == before
