"""What stands for a skipped MLP."""

import torch
from recipes_for_tests import tiny_recipe
from transformers import AutoModelForCausalLM

from compress.fitting import run
from compress.fitting.job import prepare, tokens_of


def test_mean_control_predicts_the_mean_output(folders, tmp_path):
    source = folders("llama")
    out = run.fit(tiny_recipe(source, tmp_path, {"method": "skip_mlp", "layers": [0], "output": "mean"}))
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    job = prepare(tiny_recipe(source, tmp_path, {"method": "skip_mlp", "layers": [0], "output": "mean"}))
    seen = []
    original.model.layers[0].mlp.register_forward_hook(lambda *a: seen.append(a[2].double()))
    with torch.no_grad():
        original(tokens_of(job))
    mean = torch.cat([s.flatten(0, 1) for s in seen]).mean(0)
    stored = AutoModelForCausalLM.from_pretrained(out).model.layers[0].mlp.down_proj.bias
    torch.testing.assert_close(stored.double(), mean, rtol=1e-3, atol=1e-4)
