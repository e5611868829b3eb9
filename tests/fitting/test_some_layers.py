"""Several methods in one recipe, each on some layers: what is saved is what was in memory, bit for bit."""

import json

import pytest
import torch
from recipes_for_tests import IDS, logits, tiny_recipe
from transformers import AutoModelForCausalLM

from compress.fitting import assemble, run
from compress.fitting.channel_order import with_free_orders
from compress.fitting.decide import replacements_of
from compress.fitting.job import prepare, source_hash_of
from compress.fitting.units import evenly
from compress.recipe import load_recipe

STEPS = {
    "identity, crystallized": (
        {"method": "skip_mlp", "layers": [1], "output": "identity"},
        {"method": "crystallized_attention", "layers": [0], "rank": 2, "importance": "fisher"},
    ),
    "zero, bottleneck": (
        {"method": "skip_mlp", "layers": [0], "output": "zero"},
        {"method": "mlp_bottleneck", "layers": [1], "inputs": 8, "outputs": 4},
    ),
    "symbolic, neurons, linears": (
        {
            "method": "symbolic_mlp",
            "layers": [1],
            "latents": {"inputs": 4, "outputs": 2},
            "samples": 500,
            "engine": {"name": "sparse"},
        },
        {"method": "residual_mlp", "layers": [0], "latents": {"kind": "neurons", "outputs": 5}, "affine": 2, "samples": 500},
        {"method": "feature_space", "targets": {"roles": ["o"]}, "rank": {"budget": 0.6}, "importance": "fisher"},
    ),
}


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "opt"])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_saved_equals_in_memory_bit_for_bit(folders, tmp_path, steps, model_type):
    recipe = tiny_recipe(folders(model_type), tmp_path, *steps)
    out = run.fit(recipe)
    job = prepare(load_recipe(out / "recipe.yaml"))  # which says where expressions gave way
    units = job.variants["compressed"]
    levers = {row["lever"]: row["taken"] for row in json.loads((out / "report.json").read_text())["quality"]["levers"]}
    if not levers.get(run.SHARED, True):  # on random text equal ranks may do as well
        units = evenly(units) or units
    made = with_free_orders(job.model, replacements_of(job, units, source_hash_of(job)))
    memory = assemble.load_variant(job.model, made)
    with torch.no_grad():
        assert torch.equal(memory(IDS).logits, logits(out))
    again = tmp_path / "again"
    AutoModelForCausalLM.from_pretrained(out).save_pretrained(again)
    assert torch.equal(logits(out), logits(again))
