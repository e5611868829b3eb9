"""A cache of latents: all of them are the model, fewer are the best product of their rank, and any cache reads them."""

import json

import pytest
import torch
from checkpoints import tiny_model
from interpreters import run_without
from long import long
from recipes_for_tests import tiny_recipe
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from compress.evaluating.cost import account, cache_bytes_per_token
from compress.fitting import run
from compress.fitting.acceptance import Acceptance
from compress.fitting.decide import replacements_of
from compress.fitting.job import prepare, source_hash_of, tokens_of
from compress.methods.attention._rotary import rotary_frequencies

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
IDS = torch.arange(2 * 30).view(2, 30) * 7 % 89 + 1
FISHER = {"importance": "fisher"}


def recipe_of(source, tmp_path, more=None, **options):
    return tiny_recipe(source, tmp_path, {"method": "latent_kv", **options}, **(more or {}))


def fitted(source, tmp_path, more=None, **options):
    return run.fit(recipe_of(source, tmp_path, more, **options))


def load(folder, dtype=torch.float32, **more):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **more).eval()


def padded(length=30):
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, :6] = 0
    return mask


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"share": "separate", **FISHER}, {"share": "head", "metric": "weight"}], ids=str)
def test_the_whole_width_is_the_model(folders, tmp_path, model_type, options):
    source = folders(model_type)
    out = fitted(source, tmp_path, cache=1.0, **options)
    with torch.no_grad():
        expected, found = load(source)(IDS).logits, load(out)(IDS).logits
    if model_type in ("qwen3", "mistral"):  # more key and value dimensions than the model is wide
        assert json.loads((out / "report.json").read_text())["modules"][0]["rank"] <= 64
    assert float((found - expected).abs().max()) <= 2e-5 * float(expected.abs().max())


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("share", ["joint", "separate"])
@pytest.mark.parametrize("left_padding", [False, True])
def test_steps_with_a_cache_are_one_pass_without(folders, tmp_path, model_type, share, left_padding):
    model = load(fitted(folders(model_type), tmp_path, cache=0.5, share=share))
    mask = padded() if left_padding else torch.ones_like(IDS)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        whole = model(IDS, attention_mask=mask, position_ids=positions).logits
        for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=40)):
            steps = []
            for start, end in ((0, 12), (12, 13), (13, 14), (14, 20), (20, 21), (21, 30)):
                part = model(
                    IDS[:, start:end], attention_mask=mask[:, :end], position_ids=positions[:, start:end], past_key_values=cache
                )
                steps.append(part.logits)
            gap = (torch.cat(steps, 1) - whole)[mask.bool()].abs().max()
            assert float(gap) <= 2e-5 * float(whole.abs().max()), type(cache)


def test_the_product_is_the_best_of_its_rank_and_biases_are_kept(folders, tmp_path):
    """Against an SVD of the whitened stack, in numpy-like float64, on the inputs the layer really sees."""
    source, width = folders("qwen2"), 12
    out = fitted(source, tmp_path, cache=width / 32, metric="uncentred", layers=[0])
    dense, model = load(source), load(out)
    seen = []
    dense.model.layers[0].self_attn.k_proj.register_forward_pre_hook(lambda _, a: seen.append(a[0].double().flatten(0, 1)))
    with torch.no_grad():
        dense(tokens_of(prepare(recipe_of(source, tmp_path))))
    x = torch.cat(seen)
    old, new = dense.model.layers[0].self_attn, model.model.layers[0].self_attn
    weight = torch.cat([old.k_proj.weight, old.v_proj.weight]).double()
    y = x @ weight.T
    best = torch.linalg.svdvals(y)[width:].square().sum()
    product = torch.cat([new.k_proj.weight, new.v_proj.weight]).flatten(0, 1).double() @ new.basis.double()
    assert float((y - x @ product.T).detach().square().sum()) == pytest.approx(float(best), rel=1e-3)
    torch.testing.assert_close(new.k_proj.bias.flatten(), old.k_proj.bias)
    torch.testing.assert_close(new.v_proj.bias.flatten(), old.v_proj.bias)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_the_live_cache_is_as_small_as_asked(folders, tmp_path, fraction):
    source = folders("llama")
    bytes_of = [
        cache_bytes_per_token(lambda ids, m=m: m(ids, use_cache=True).past_key_values)
        for m in (load(source), load(fitted(source, tmp_path, cache=fraction)))
    ]
    assert bytes_of[1] == fraction * bytes_of[0]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_generation_agrees_over_caches_beams_padding_and_crop(folders, tmp_path, model_type):
    model = load(fitted(folders(model_type), tmp_path, cache=0.5))
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "attention_mask": padded(12)}
    prompt = IDS[:, :12]
    for beams in (1, 3):
        found = [
            model.generate(prompt, num_beams=beams, **options, **more)
            for more in ({"use_cache": False}, {}, {"cache_implementation": "static"})
        ]
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
    if model_type != "mistral":  # transformers cannot crop a full sliding window
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(prompt, past_key_values=cache)
            cache.crop(-4)
            again = model(IDS[:, 8:9], past_key_values=cache).logits[:, -1]
            torch.testing.assert_close(again, model(IDS[:, :9]).logits[:, -1], rtol=0, atol=2e-5 * float(again.abs().max()))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_both_attention_functions_and_bfloat16(folders, tmp_path, implementation):
    out = fitted(folders("qwen2"), tmp_path, cache=0.5)
    with torch.no_grad():
        expected = load(out)(IDS, attention_mask=padded()).logits
        other = load(out, attn_implementation=implementation)(IDS, attention_mask=padded()).logits
        torch.testing.assert_close(
            other[padded().bool()], expected[padded().bool()], rtol=0, atol=2e-5 * float(expected.abs().max())
        )
        half = load(out, torch.bfloat16)
        assert half.model.layers[0].self_attn.frequencies.dtype == torch.float32
        assert float((half(IDS, attention_mask=padded()).logits - expected)[padded().bool()].abs().mean()) < 0.05 * float(
            expected.abs().max()
        )


@pytest.mark.parametrize("step", [{}, {"share": "separate"}, {"allocation": "global", **FISHER}], ids=str)
def test_saved_equals_in_memory_and_another_width_refits_nothing(folders, tmp_path, step):
    from compress.fitting import assemble

    recipe = recipe_of(folders("qwen2"), tmp_path, cache=0.5, **step)
    out = run.fit(recipe)
    job = prepare(recipe)
    material = source_hash_of(job)
    memory = assemble.load_variant(job.model, replacements_of(job, job.variants["compressed"], material))
    with torch.no_grad():
        assert torch.equal(memory(IDS).logits, load(out)(IDS).logits)
    other = prepare(recipe_of(folders("qwen2"), tmp_path, cache=0.25, **step))
    assert {u.fingerprint(material) for u in other.units} == {u.fingerprint(material) for u in job.units}


def test_one_budget_moves_width_between_layers(folders, tmp_path):
    rows = [
        json.loads(
            (fitted(folders("qwen2"), tmp_path / kind, cache=0.5, allocation=kind, **FISHER) / "report.json").read_text()
        )
        for kind in ("uniform", "global")
    ]
    uniform, shared = ([m["rank"] for m in row["modules"]] for row in rows)
    assert uniform == [16, 16]
    assert sum(shared) <= 32
    assert shared != uniform


def test_refinement_lowers_the_block_error(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(Acceptance, "better", lambda self, lever, before, after: after)  # the text is random
    out = fitted(folders("llama"), tmp_path, {"refine": {"steps": 60, "lr": 3e-3}}, cache=0.4, **FISHER)
    rows = json.loads((out / "report.json").read_text())["modules"]
    assert all(row["block_error_after"] < row["block_error_before"] for row in rows)
    assert torch.isfinite(load(out)(IDS).logits).all()


def test_a_step_costs_the_keys_it_rebuilds(folders, tmp_path):
    source = folders("llama")  # 4 heads and 2 key/value heads of 8, 32 wide
    dense, latent = (account(f, context=20).multiply_adds for f in (source, fitted(source, tmp_path, cache=0.5, layers=[0])))
    was = 2 * 16 * 32 + 20 * 4 * (8 + 8)  # k and v projections; scores and averages
    now = 16 * 32 + 20 * (16 * 16 + 4 * (8 + 16)) + 4 * 8 * 16  # basis; keys, scores and averages; value rows
    assert latent.total - dense.total == now - was


@long
def test_the_generated_file_holds_it_and_a_loader_that_knows_neither_stops(folders, tmp_path):
    out = fitted(folders("qwen3"), tmp_path, cache=0.5)
    code = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM\n"
        "ids = torch.arange(60).view(2, 30) * 7 % 89 + 1\n"
        "try:\n    AutoModelForCausalLM.from_pretrained(sys.argv[1])\nexcept RuntimeError as error:\n    print(error)\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, trust_remote_code=True).eval()\n"
        "torch.save(model(ids).logits.detach(), 'logits.pt')\n"
    )
    said = run_without(["compress"], code, tmp_path, str(out))
    assert "size" in said
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), load(out)(IDS).logits)


def test_what_there_is_no_latent_attention_for_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="'gpt2' given; there is a latent attention for llama, mistral, qwen2, qwen3"):
        fitted(folders("gpt2"), tmp_path)
    with pytest.raises(ValueError, match="needs importance: fisher"):
        fitted(folders("llama"), tmp_path, allocation="global")
    rope = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
    with pytest.raises(NotImplementedError, match="'dynamic' change with the length"):
        rotary_frequencies(tiny_model("llama", **rope).model.layers[0].self_attn)
