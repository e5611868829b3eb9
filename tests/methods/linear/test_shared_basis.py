"""One basis for several projections: stored once, computed once per input."""

import json

import pytest
import torch
from recipes_for_tests import IDS, tiny_recipe
from transformers import AutoModelForCausalLM

from compress.fitting import run

SHARES = {
    "kv": {"share": [["k", "v"]]},
    "qkv, gate up": {"share": [["q", "k", "v"], ["gate", "up"]]},
    "v over two layers": {"share": [["v"]], "layers_together": 2},
}


@pytest.mark.parametrize("form", ["plain", "pivoted"])
@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
def test_shared_basis_is_stored_once_and_is_the_stacked_truncation(folders, tmp_path, share, form):
    source = folders("llama")
    step = {"method": "shared_basis", "rank": {"keep": 0.6}, "form": form, **share}
    out = run.fit(tiny_recipe(source, tmp_path, step))
    specs = json.loads((out / "config.json").read_text())["quantization_config"]["modules"]
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert sum(name.endswith(".basis") for name, _ in model.named_parameters()) == sum(
        s["options"].get("owner") is None for s in specs
    )
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    owners = {s["options"].get("owner") or s["module"] for s in specs}
    for owner in owners:
        members = [s["module"] for s in specs if (s["options"].get("owner") or s["module"]) == owner]
        modules = [model.get_submodule(name) for name in members]
        rank = modules[0].rank
        eye = torch.eye(modules[0].in_features)
        with torch.no_grad():
            product = torch.cat([(m(eye) - m(torch.zeros_like(eye))).T for m in modules])
        assert int(torch.linalg.matrix_rank(product, rtol=1e-4)) == rank
        assert product.shape == torch.cat([original.get_submodule(name).weight for name in members]).shape


def test_shared_basis_is_computed_once_per_input(folders, tmp_path, monkeypatch):
    out = run.fit(
        tiny_recipe(folders("llama"), tmp_path, {"method": "shared_basis", "rank": {"keep": 0.5}, "share": [["q", "k", "v"]]})
    )
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    owner = model.model.layers[0].self_attn.q_proj
    products = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, w, b=None: (products.append(w is owner.basis), linear(x, w, b))[1]
    )
    with torch.no_grad():
        first = model(IDS).logits
        assert sum(products) == 1
        second = model(IDS + 1).logits
    assert sum(products) == 2
    assert not torch.equal(first, second)
