"""The kept part of the residual is its projection on the leading singular vectors, and nothing is stored beside the weights."""

import json

import pytest
import torch
from interpreters import run_without
from recipes_for_tests import tiny_recipe
from transformers import AutoModelForCausalLM

from compress.architecture import architecture
from compress.evaluating.cost import account
from compress.fitting import run
from compress.fitting.acceptance import Acceptance
from compress.fitting.job import prepare, tokens_of
from compress.methods.attention.crystallized_attention import CrystallizedAttention
from compress.packaged import recipes_folder
from compress.searching.sweep import sweep

FIVE = ("gpt2", "llama", "qwen2", "qwen3", "mistral")
IDS = torch.arange(2 * 30).view(2, 30) * 7 % 89 + 1


def fitted(source, tmp_path, **options):
    step = {"method": "crystallized_attention", "layers": [1], **options}
    return run.fit(tiny_recipe(source, tmp_path, step))


def load(folder, **more):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).eval()


def layer_one(model, tokens):
    """(probabilities (B, H, T, T), values (B, H, T, C), what the output projection reads (B, H, T, C)) of the second layer."""
    row = architecture(model.config.model_type)
    attention = model.get_submodule(f"{row.layer(1)}.{row.attention}")
    seen = {}
    value = model.get_submodule(row.module(1, "v" if "v" in row.roles else "qkv"))
    handles = [
        value.register_forward_hook(lambda *a: seen.update(value=a[2])),
        model.get_submodule(row.module(1, "o")).register_forward_pre_hook(lambda *a: seen.update(read=a[1][0])),
    ]
    with torch.no_grad():
        p = model(tokens, output_attentions=True).attentions[1]
    for handle in handles:
        handle.remove()
    size = attention.head_dim
    v = seen["value"] if "v" in row.roles else seen["value"][..., -p.shape[1] * size :]
    v = v.unflatten(-1, (-1, size)).transpose(1, 2)
    v = v.repeat_interleave(p.shape[1] // v.shape[1], dim=1)
    return p.double(), v.double(), seen["read"].unflatten(-1, (-1, size)).transpose(1, 2).double()


@pytest.mark.parametrize("model_type", FIVE)
@pytest.mark.parametrize("rank", [1, 3])
def test_the_kept_residual_is_its_projection_on_the_leading_singular_vectors(folders, tmp_path, model_type, rank):
    source = folders(model_type)
    out = fitted(source, tmp_path, rank=rank)
    job = prepare(tiny_recipe(source, tmp_path, {"method": "crystallized_attention", "layers": [1], "rank": rank}))
    dense = load(source, attn_implementation="eager")
    p, v, _ = layer_one(dense, tokens_of(job))
    groups = getattr(dense.config, "num_key_value_heads", p.shape[1])

    def split(p, v):
        top = v.gather(2, p.argmax(-1)[..., None].expand_as(v))
        return top, p @ v - top

    _, residual = split(p, v)
    by_group = residual.unflatten(1, (groups, -1)).movedim(1, 0).flatten(1, 3)  # (G, n, C)
    bases = torch.linalg.svd(by_group, full_matrices=False).Vh[:, :rank]  # (G, r, C)
    projector = (bases.transpose(1, 2) @ bases).repeat_interleave(p.shape[1] // groups, dim=0)
    p, v, _ = layer_one(dense, IDS)
    top, residual = split(p, v)
    row = architecture(dense.config.model_type)
    o = dense.get_submodule(row.module(1, "o"))
    expected = o((top + residual @ projector).transpose(1, 2).flatten(2).float()).detach()
    compressed, found = load(out), []
    compressed.get_submodule(row.module(1, "o")).register_forward_hook(lambda *a: found.append(a[2].detach()))
    with torch.no_grad():
        compressed(IDS)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("model_type", FIVE)
@pytest.mark.parametrize("options", [{"mode": "full"}, {"rank": 8}, {"rank": 8, "importance": "fisher"}], ids=str)
def test_every_dimension_is_the_baseline(folders, tmp_path, model_type, options):
    source = folders(model_type)
    size = {"qwen3": 16, "mistral": 12}.get(model_type, 8)
    out = fitted(source, tmp_path, **{**options, **({"rank": size} if "rank" in options else {})})
    with torch.no_grad():
        expected, found = load(source)(IDS).logits, load(out)(IDS).logits
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_a_partial_sum_in_the_new_basis_loses_nothing_but_what_it_leaves_out(folders, tmp_path):
    """The fold alone: with rank one below the full one, weights are rotated and nearly everything is kept."""
    source = folders("llama")
    gaps = []
    for rank in (1, 4, 7):
        out = fitted(source, tmp_path / str(rank), rank=rank)
        with torch.no_grad():
            gaps.append(float((load(out)(IDS).logits - load(source)(IDS).logits).abs().mean()))
    assert gaps[0] > gaps[1] > gaps[2] > 0


@pytest.mark.parametrize("importance", ["none", "output", "fisher"])
def test_error_falls_with_rank_and_the_report_has_the_spectrum(folders, tmp_path, importance):
    rows = []
    for rank in (1, 3, 6):
        out = fitted(folders("llama"), tmp_path, rank=rank, importance=importance)
        rows += json.loads((out / "report.json").read_text())["modules"]
    errors = [row["relative_error"] for row in rows]
    assert errors[0] > errors[1] > errors[2] > 0
    residual = rows[0]["residual"]
    assert set(residual["variance"]) == {"1", "2", "4", "8"}
    assert residual["variance"]["8"] == [1.0, 1.0]
    assert all(1 <= d <= 8 for d in residual["dimensions_for_90"])


def test_nothing_is_stored_beside_the_weights(folders, tmp_path):
    source = folders("llama")
    out = fitted(source, tmp_path, rank=2)
    dense, compressed = (load(f).state_dict() for f in (source, out))
    assert {k: v.shape for k, v in dense.items()} == {k: v.shape for k, v in compressed.items()}
    changed = {k.rpartition("self_attn.")[2] for k in dense if not torch.equal(dense[k], compressed[k])}
    assert changed == {"v_proj.weight", "v_proj.bias", "o_proj.weight"}


def test_the_generated_file_holds_it_and_a_loader_that_knows_neither_gets_the_original(folders, tmp_path):
    """The weights are the original's in another basis, so that what loads without us is the original model."""
    source = folders("gpt2")
    out = fitted(source, tmp_path, rank=2)
    code = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM\n"
        "ids = torch.arange(60).view(2, 30) * 7 % 89 + 1\n"
        "for more in ({}, {'trust_remote_code': True}):\n"
        "    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, **more).eval()\n"
        "    torch.save(model(ids).logits.detach(), f'{len(more)}.pt')\n"
    )
    run_without(["compress"], code, tmp_path, str(out))
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "1.pt", weights_only=True), load(out)(IDS).logits)
        expected = load(source)(IDS).logits
    torch.testing.assert_close(
        torch.load(tmp_path / "0.pt", weights_only=True), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )


@pytest.mark.parametrize("model_type", ["gpt2"])
def test_the_published_recipe_runs_on_a_random_gpt2(folders, tmp_path, model_type):
    source = folders(model_type)
    text = f"{{text: {source / 'text.txt'}, sequences: 4, length: 32}}"
    settings = [f"model={source}", f"calibration={text}", f"evaluation.texts={{own: {text}}}"]
    settings += ["evaluation.length=32", f"output={tmp_path / 'points'}"]
    rows = sweep(recipes_folder() / "crystallized_gpt2.yaml", [*settings, "steps.0.layers=0,1", "steps.0.rank=2,8"])
    baseline = rows[0]["evaluation"]["baseline"]["own"]["nll"]
    gaps = {row["name"]: abs(row["evaluation"]["compressed"]["own"]["nll"] - baseline) for row in rows}
    assert all(gaps[f"layers={i},rank=8"] < 1e-5 < gaps[f"layers={i},rank=2"] for i in (0, 1))
    assert (tmp_path / "points" / "sweep.png").stat().st_size > 1000  # the heat map of layers × r


def test_an_interrupted_second_pass_takes_the_finished_units_over(folders, tmp_path, monkeypatch):
    """Refinement reads gradients that the first pass left: a unit whose gradients are there is not fitted again."""
    monkeypatch.setattr(Acceptance, "better", lambda self, lever, before, after: after)  # the text is random
    step = {"method": "crystallized_attention", "layers": [1], "rank": 3, "importance": "fisher"}
    recipe = tiny_recipe(folders("llama"), tmp_path, step, refine={"steps": 20, "lr": 3e-3})
    out = run.fit(recipe)
    row = json.loads((out / "report.json").read_text())["modules"][0]
    assert row["block_error_after"] < row["block_error_before"]
    monkeypatch.setattr(CrystallizedAttention, "fit", lambda *_: pytest.fail("fitted again"))
    run.fit(recipe)


def test_a_step_costs_the_dimensions_it_averages(folders, tmp_path):
    source = folders("llama")
    counts = [account(f, context=20).multiply_adds.total for f in (source, fitted(source, tmp_path, rank=3))]
    assert counts[0] - counts[1] == 4 * (8 - 3) * 20  # heads · dimensions left out · positions, in one layer


def test_impossible_options_are_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="rank 9 given; a head has 8 dimensions"):
        fitted(folders("llama"), tmp_path, rank=9)
    step = {"method": "crystallized_attention", "targets": {"roles": ["q"]}}
    with pytest.raises(ValueError, match="replaces whole attentions; give layers"):
        prepare(tiny_recipe(folders("llama"), tmp_path, step))
    both = {"method": "crystallized_attention"}, {"method": "weight_svd", "targets": {"roles": ["v"]}, "rank": {"keep": 0.5}}
    with pytest.raises(ValueError, match="both replace"):
        prepare(tiny_recipe(folders("llama"), tmp_path, *both))
