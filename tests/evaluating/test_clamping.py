"""What evaluation says of clamped latents is what was clamped, in the report and in the table."""

import json

import pytest
import torch
from recipes_for_tests import tiny_folder, tiny_recipe

from compress import data
from compress.evaluating.clamping import counted, measured
from compress.evaluating.perplexity import perplexity
from compress.fitting import run
from compress.fitting.acceptance import Acceptance
from compress.loading.quantizer import from_pretrained

STEPS = [
    {
        "method": "symbolic_mlp",
        "layers": [0],
        "latents": {"inputs": 6, "outputs": 2},
        "samples": 300,
        "engine": {"name": "sparse"},
    },
    {"method": "residual_mlp", "layers": [1], "latents": {"inputs": 3, "outputs": 2}, "affine": 2, "samples": 300},
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"), "llama")


def fitted(source, output, *steps):
    texts = {"texts": {"own": str(source / "text.txt")}, "length": 32, "sequences": 6, "controls": ["mean", "affine"]}
    with pytest.MonkeyPatch.context() as patch:  # expressions stay, whatever the loss of random text
        patch.setattr(Acceptance, "better", lambda self, lever, before, after: before)
        return run.fit(tiny_recipe(source, output, *steps, evaluation=texts))


@pytest.fixture(scope="module")
def checkpoint(source, tmp_path_factory):
    return fitted(source, tmp_path_factory.mktemp("run") / "out", *STEPS)


def windows(source):
    text = data.TextSource(text=str(source / "text.txt"), length=32, sequences=6)
    return data.evaluation_tokens(text, data.load_tokenizer(str(source)))


def outside(model, tokens):
    """Share of latents outside their range, from what each surrogate reads."""
    seen = []

    def look(module, args):
        z = args[0] @ module.basis[: module.inputs].T + module.offset
        seen.append(((z < module.low) | (z > module.high)).flatten())

    handles = [layer.mlp.register_forward_pre_hook(look) for layer in model.model.layers if hasattr(layer.mlp, "low")]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return float(torch.cat(seen).double().mean())


def test_the_report_has_the_share_and_only_where_something_clamps(source, checkpoint):
    evaluation = json.loads((checkpoint / "report.json").read_text())["evaluation"]
    share = evaluation["compressed"]["own"]["clamped"]
    assert 0 < share < 0.2
    assert share == pytest.approx(outside(from_pretrained(checkpoint, dtype=torch.float32), windows(source)), abs=1e-4)
    assert all("clamped" not in evaluation[variant]["own"] for variant in ("baseline", "mean", "affine"))


def test_narrower_ranges_clamp_more_and_counting_changes_no_perplexity(source, checkpoint):
    model = from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokens = windows(source)
    before = measured(model, tokens)
    assert {k: before[k] for k in ("nll", "perplexity", "tokens")} == perplexity(model, tokens)
    for layer in model.model.layers:
        layer.mlp.low.fill_(0.0)
        layer.mlp.high.fill_(0.0)
    assert measured(model, tokens)["clamped"] == 1.0 > before["clamped"]
    assert not any(layer.mlp._forward_pre_hooks for layer in model.model.layers)


def test_a_surrogate_that_does_not_clamp_is_not_counted(source, tmp_path):
    folder = fitted(source, tmp_path / "out", *({**step, "clamp": False} for step in STEPS))
    assert "clamped" not in json.loads((folder / "report.json").read_text())["evaluation"]["compressed"]["own"]
    with counted(torch.nn.Linear(2, 2)) as share:
        assert share() is None


def test_the_commands_print_it(compress, source, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(Acceptance, "better", lambda self, lever, before, after: before)
    said = json.loads((checkpoint / "report.json").read_text())["evaluation"]["compressed"]["own"]["clamped"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((checkpoint / "recipe.yaml").read_text())
    code, out, _ = compress("fit", recipe)  # finished units are taken over
    assert code == 0
    assert f"{said:.2%}" in out
    text = ("--text", source / "text.txt", "--length", 32, "--sequences", 6)
    code, out, _ = compress("eval", checkpoint, *text, "--json")
    assert code == 0
    assert next(iter(json.loads(out).values()))["clamped"] == pytest.approx(said, abs=1e-6)


def test_the_affine_control_is_through_the_same_latents(source, checkpoint, tmp_path):
    """Of a symbolic_mlp through its latents, of a residual_mlp its own map."""
    steps = [
        {"method": "affine_mlp", "layers": [0], "through": {"inputs": 6, "outputs": 2}},
        {"method": "affine_mlp", "layers": [1], "rank": 2},
    ]
    folder = fitted(source, tmp_path / "out", *steps)
    control, alone = (json.loads((f / "report.json").read_text())["evaluation"] for f in (checkpoint, folder))
    assert control["affine"]["own"] == alone["compressed"]["own"]
