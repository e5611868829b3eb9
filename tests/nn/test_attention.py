"""Crystallized attention computes what its definition says, and at full rank what it replaces."""

import pytest
import torch
from checkpoints import FAMILIES, tiny_model
from torch.nn import functional as F

from compress.architecture import architecture
from compress.loading.modules import apply_plan
from compress.nn import attention
from compress.nn.attention import CrystallizedAttention, attend, crystallized
from compress.plan import ModuleSpec, Plan

B, H, G, C = 2, 4, 2, 8
IDS = torch.arange(2 * 40).view(2, 40) * 7 % 89 + 1


def head_dim(model):
    config = model.config
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def crystallize(model, rank=None):
    row = architecture(model.config.model_type)
    size = head_dim(model)
    options = {"rank": size if rank is None else rank, "head_dim": size}
    layers = range(len(model.get_submodule(row.layers)))
    names = [f"{row.layer(i)}.{row.attention}" for i in layers]
    apply_plan(model, Plan(modules=tuple(ModuleSpec(module=n, kind="crystallized_attention", options=options) for n in names)))
    return model


def tensors(new, total, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, H, new, C), (B, G, total, C), (B, G, total, C)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def dense(query, key, value, visible):
    """The definition, in numpy-like float64: probabilities and the position of the largest."""
    key, value = (t.double().repeat_interleave(H // G, dim=1) for t in (key, value))
    scores = query.double() @ key.transpose(2, 3) * C**-0.5
    p = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return p, value


def visible_mask(kind, new, total):
    rows, columns = torch.arange(total - new, total)[:, None], torch.arange(total)
    mask = (columns <= rows).expand(B, 1, new, total).clone()
    if kind == "window":
        mask &= columns > rows - 7
    if kind == "padding":
        mask[1, :, :, :5] = False
    return mask


@pytest.mark.parametrize("kind", ["causal", "window", "padding"])
@pytest.mark.parametrize(("new", "total"), [(50, 50), (1, 50), (13, 50)])
@pytest.mark.parametrize("rank", [0, 3, C])
def test_the_function_is_its_definition(monkeypatch, kind, new, total, rank):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    monkeypatch.setattr(attention, "KEY_BLOCK", 11)
    query, key, value = tensors(new, total)
    mask = visible_mask(kind, new, total)
    p, values = dense(query, key, value, mask)
    top = values.gather(2, p.argmax(-1)[..., None].expand(-1, -1, -1, C))
    kept = torch.diag((torch.arange(C) < rank).double())
    expected = top + (p @ values - top) @ kept
    module = type("M", (), {"crystallized_rank": rank})()
    seen = [p.sum(-1) > 0.5]  # a padded row sees nothing: no answer is right
    for given in (mask, torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)):
        out, _ = crystallized(module, query, key, value, given)
        torch.testing.assert_close(out.transpose(1, 2).double()[seen[0]], expected[seen[0]], rtol=0, atol=2e-6)


@pytest.mark.parametrize("new", [1, 40])
def test_equal_weights_resolve_to_the_first_position(monkeypatch, new):
    monkeypatch.setattr(attention, "KEY_BLOCK", 4)
    query, key, value = tensors(new, 40)
    key[:] = key[:, :, :1]
    _, top = attend(query, key, value, torch.ones(B, 1, new, 40, dtype=torch.bool))
    assert bool((top == 0).all())


def test_no_mask_is_causal_and_skips_an_unfilled_cache():
    query, key, value = tensors(30, 64)
    expected = F.scaled_dot_product_attention(query, key[:, :, :30], value[:, :, :30], is_causal=True, enable_gqa=True)
    weighted, _ = attend(query, key, value, None)
    torch.testing.assert_close(weighted.flatten(1, 2), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("padded", [False, True])
def test_full_rank_is_the_original_with_and_without_cache(model_type, padded):
    model, same = tiny_model(model_type), crystallize(tiny_model(model_type))
    mask = torch.ones_like(IDS)
    if padded:
        mask[1, :6] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    more = {} if model_type == "opt" else {"position_ids": positions}
    with torch.no_grad():
        expected = model(IDS, attention_mask=mask, **more).logits
        whole = same(IDS, attention_mask=mask, **more).logits
        cache, steps = None, []
        for start, end in ((0, 20), (20, 21), (21, 22), (22, 40)):
            part = {} if model_type == "opt" else {"position_ids": positions[:, start:end]}
            out = same(IDS[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True, **part)
            cache = out.past_key_values
            steps.append(out.logits)
    seen = mask.bool()
    scale = float(expected.abs().max())
    assert float((whole - expected)[seen].abs().max()) <= 1e-5 * scale
    assert float((torch.cat(steps, 1) - expected)[seen].abs().max()) <= 1e-5 * scale


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen2", "qwen3", "mistral"])
def test_bfloat16_is_as_near_to_float32_as_the_original(model_type):
    exact = tiny_model(model_type)
    with torch.no_grad():
        expected = exact(IDS).logits
        errors = [
            float((m.to(torch.bfloat16)(IDS).logits - expected).abs().mean())
            for m in (tiny_model(model_type), crystallize(tiny_model(model_type)))
        ]
    assert errors[1] <= 1.5 * errors[0]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_generation_is_the_same_with_static_cache_and_beams(implementation, cache):
    model, same = tiny_model("mistral"), crystallize(tiny_model("mistral"))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    for m in (model, same):
        m.set_attn_implementation(implementation)
    mask = torch.ones_like(IDS[:, :12])
    mask[1, :3] = 0
    for beams in (1, 3):
        found = [
            m.generate(IDS[:, :12], attention_mask=mask, num_beams=beams, cache_implementation=cache, **options)
            for m in (model, same)
        ]
        assert torch.equal(*found)


def test_the_original_function_stays_with_the_other_layers():
    model = tiny_model("llama")
    options = {"rank": 0, "head_dim": head_dim(model)}
    spec = ModuleSpec(module="model.layers.1.self_attn", kind="crystallized_attention", options=options)
    names = set(model.state_dict())
    apply_plan(model, Plan(modules=(spec,)))
    assert set(model.state_dict()) == names
    assert model.model.layers[0].self_attn.config._attn_implementation == "sdpa"
    assert isinstance(model.model.layers[1].self_attn, CrystallizedAttention)


def test_an_impossible_rank_and_mask_are_refused():
    with pytest.raises(ValueError, match="rank 9 given; allowed: 0"):
        CrystallizedAttention(torch.nn.Linear(1, 1), 9, 8)
    query, key, value = tensors(3, 3)
    with pytest.raises(ValueError, match="mask of four dimensions"):
        crystallized(type("M", (), {"crystallized_rank": 1})(), query, key, value, torch.ones(2, 3))
