"""A local explanation finds what a known module does around a token, says how well, and names what it cannot explain."""

import json

import numpy as np
import pytest
import torch
from recipes_for_tests import tiny_folder
from torch import nn

from compress import data
from compress.explaining.explain import ExplainOptions, explain_token
from compress.explaining.token_function import TokenFunction
from compress.loading.quantizer import from_pretrained
from compress.validation import checked

MLP, ATTENTION, LAYER = "model.layers.1.mlp", "model.layers.1.self_attn", "model.layers.1"


class Product(nn.Module):
    """(a·x)(b·x) along one output direction: its local form is known."""

    def __init__(self, width):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a, self.b, self.out = torch.randn(3, width, generator=generator)

    def forward(self, x):
        return ((x @ self.a) * (x @ self.b))[..., None] * self.out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(model, tokenizer, text)"""
    folder = tiny_folder(tmp_path_factory.mktemp("model"), "llama")
    model = from_pretrained(folder, dtype=torch.float32).eval()
    return model, data.load_tokenizer(str(folder)), (folder / "text.txt").read_text()[:40]


def options(**more):
    return ExplainOptions.model_validate({"neighbours": 500} | more)


@pytest.fixture
def product(tiny):
    model, *_ = tiny
    layer, kept = model.model.layers[1], model.model.layers[1].mlp
    layer.mlp = Product(model.config.hidden_size)
    yield layer.mlp
    layer.mlp = kept


def test_a_product_is_found_exactly_where_a_linear_explanation_is_not(tiny, product):
    model, tokenizer, text = tiny
    found = explain_token(model, tokenizer, MLP, text, 7, options(inputs=2, width=1.0, choose="held_out"))
    assert found.r2[0] == pytest.approx(1, abs=1e-6)
    assert found.linear_r2[0] < 0.95
    assert found.explained[0] == pytest.approx(1)
    expected = product.out / product.out.norm()
    assert abs(float(found.output_directions[0] @ expected.double())) == pytest.approx(1, abs=1e-6)
    # The formula says what the module does at a step along the first direction, from the token's own activation.
    at = TokenFunction(model, MLP, torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]]), 7)
    step = torch.linalg.pinv(found.directions)[:, :1].T  # x0 = 1, x1 = 0
    start = at.inputs[7:8].double()
    change = (at(start + 0.3 * step) - at(start)) @ found.output_directions.T
    values = found.distilled.module()(torch.tensor([[0.3, 0.0]])) - found.distilled.module()(torch.tensor([[0.0, 0.0]]))
    torch.testing.assert_close(values.double(), change, rtol=1e-3, atol=1e-4)


def test_the_nearer_the_more_linear(tiny):
    model, tokenizer, text = tiny
    r2 = [explain_token(model, tokenizer, MLP, text, 5, options(width=w, inputs=12)).linear_r2[0] for w in (2.0, 0.3, 0.01)]
    assert r2 == sorted(r2)
    assert r2[-1] > 0.9


@pytest.mark.parametrize("module", [MLP, ATTENTION, LAYER, "model.layers.0.self_attn.q_proj", "model.norm"])
def test_every_kind_of_module_is_explained_reproducibly(tiny, module):
    model, tokenizer, text = tiny
    first, again = (explain_token(model, tokenizer, module, text, -3, options(outputs=2)) for _ in range(2))
    described = json.loads(json.dumps(first.to_json(), allow_nan=False))
    assert described == again.to_json()
    assert described["position"] == 37
    assert described["token"] == text[37]
    assert [len(o["text"]) > 0 for o in described["outputs"]] == [True, True]
    assert [i["name"] for i in described["inputs"]] == ["x0", "x1", "x2", "x3"]
    assert described["outputs"][0]["share_of_output_variance"] >= described["outputs"][1]["share_of_output_variance"]
    assert first.latex().count("&=") == 2
    assert f"local R² {first.r2[0]:.3f}" in first.text()


def test_another_seed_gives_other_neighbours(tiny):
    model, tokenizer, text = tiny
    assert (
        explain_token(model, tokenizer, MLP, text, 3, options(seed=1)).r2
        != explain_token(model, tokenizer, MLP, text, 3, options(seed=2)).r2
    )


def test_an_attention_is_a_function_of_this_token_alone(tiny):
    model, tokenizer, text = tiny
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    at = TokenFunction(model, ATTENTION, ids, 9)
    seen = []
    handle = model.get_submodule(ATTENTION).register_forward_hook(lambda *given: seen.append(given[-1][0]))
    with torch.no_grad():
        model(ids)
    handle.remove()
    torch.testing.assert_close(at(at.inputs[9:10].double())[0], seen[0][0, 9].double(), rtol=1e-5, atol=1e-5)
    rows = at.inputs[9:10].double() + 0.1 * torch.randn(70, at.inputs.shape[1], dtype=torch.float64)
    directions = torch.eye(at.inputs.shape[1], dtype=torch.float64)[:2]
    gradient = at.gradients(rows, directions)[65, 1]
    step = torch.zeros_like(rows[65:66])
    step[0, 4] = 1e-2
    numeric = (at(rows[65:66] + step) - at(rows[65:66] - step))[0, 1] / 2e-2
    np.testing.assert_allclose(float(gradient[4]), float(numeric), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("module", "position", "more", "message"),
    [
        ("model.layers.1.mpl", 0, {}, r"no module 'model.layers.1.mpl'; nearest: model.layers.1.mlp"),
        ("", 0, {}, r"no module ''; give a full name, such as model.layers.0.mlp"),
        (MLP, 40, {}, r"position 40 given; the text has 40 tokens, positions 0 to 39 \(or negative\)"),
        (MLP, -41, {}, r"position -41 given"),
        ("model.embed_tokens", 0, {}, r"model.embed_tokens reads \(1, 40\) of torch.int64, not activations \(1, 40, d\)"),
        ("model.rotary_emb", 0, {}, r"output does not change around this token"),
        ("model.layers", 0, {}, r"model.layers is not called on this text"),
        (MLP, 0, {"inputs": 33}, r"inputs: 33 given, but over 40 tokens the module's inputs vary in 32 directions"),
    ],
)
def test_what_cannot_be_explained_is_named(tiny, module, position, more, message):
    model, tokenizer, text = tiny
    with pytest.raises(ValueError, match=message):
        explain_token(model, tokenizer, module, text, position, options(**more))


@pytest.mark.parametrize(
    ("characters", "vocabulary", "message"),
    [
        (200, 97, "text: 200 tokens given, and the model has 128 positions; give shorter text"),
        (40, 50, "text: token 9. .* is beyond the model's vocabulary of 50"),
        (0, 97, "text: it gives no token; give two dozen or more"),
    ],
)
def test_text_that_the_model_has_no_place_for_is_refused_before_it_runs(tiny, monkeypatch, characters, vocabulary, message):
    model, tokenizer, text = tiny
    monkeypatch.setattr(model.config, "vocab_size", vocabulary)
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        explain_token(model, tokenizer, MLP, (text * 5)[:characters], 0, options())


def test_one_token_says_nothing_of_how_activations_vary(tiny):
    model, tokenizer, text = tiny
    with pytest.raises(ValueError, match=r"over 1 tokens the module's inputs vary in 0 directions; give longer text"):
        explain_token(model, tokenizer, MLP, text[:1], 0, options())


def test_a_module_that_does_not_change_is_refused(tiny):
    model, tokenizer, text = tiny
    layer, kept = model.model.layers[1], model.model.layers[1].mlp

    class Zero(nn.Module):
        def forward(self, x):
            return x * 0

    layer.mlp = Zero()
    try:
        with pytest.raises(ValueError, match="does not change around this token"):
            explain_token(model, tokenizer, MLP, text, 2, options())
    finally:
        layer.mlp = kept


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"width: Input should be greater than 0; given 0"):
        checked(ExplainOptions, {"width": 0})
    with pytest.raises(ValueError, match=r"neighbours: Input should be greater than or equal to 50"):
        checked(ExplainOptions, {"neighbours": 3})
