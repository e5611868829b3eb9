"""show, pick, layers and explain: tables, LaTeX and JSON of the same numbers; a mistake is one line and exit code 2."""

import json
import shlex

import pytest
from recipes_for_tests import own_text, tiny_folder, tiny_recipe

from compress.fitting import run

LATENTS = {"inputs": 4, "outputs": 2}
STEP = {"method": "symbolic_mlp", "layers": [0], "latents": LATENTS, "samples": 500, "engine": {"name": "sparse"}}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tiny_folder(tmp_path_factory.mktemp("model"), "llama")
    own_text(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(source, tmp_path_factory):
    return run.fit(tiny_recipe(source, tmp_path_factory.mktemp("run") / "out", STEP))


def test_show_prints_the_fronts_in_three_forms(compress, checkpoint):
    code, out, err = compress("show", checkpoint, "--json")
    assert (code, err) == (0, "")
    (layer,) = json.loads(out)
    assert layer["layer"] == 0
    code, table, _ = compress("show", checkpoint, "--layer", 0)
    assert code == 0
    assert "layer 0" in table
    assert table.count("→") == len(layer["outputs"]) == 2
    code, latex, _ = compress("show", checkpoint, "--latex")
    assert code == 0
    assert latex.startswith("% layer 0\n\\begin{align}\n")
    for output in layer["outputs"]:
        assert output["candidates"][output["chosen"]]["latex"] in latex


def test_pick_changes_what_show_marks(compress, checkpoint):
    _, out, _ = compress("show", checkpoint, "--json")
    output = json.loads(out)[0]["outputs"][1]
    other = next(i for i in range(len(output["candidates"])) if i != output["chosen"])
    wanted = output["candidates"][other]
    code, out, err = compress("pick", checkpoint, "--layer", 0, "--output", 1, "--complexity", wanted["complexity"])
    assert (code, out, err) == (0, wanted["text"] + "\n", "")
    _, out, _ = compress("show", checkpoint, "--json")
    assert json.loads(out)[0]["outputs"][1]["chosen"] == other
    code, out, _ = compress("pick", checkpoint, "--layer", 0, "--output", 1, "--complexity", wanted["complexity"], "--json")
    assert json.loads(out)["candidates"] == output["candidates"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("show", "--layer", 1), "layer 1 has no expressions; layers with expressions: 0"),
        (("pick", "--layer", 1, "--output", 0, "--complexity", 5), "layer 1 has no expressions; layers with expressions: 0"),
        (("pick", "--layer", 0, "--output", 2, "--complexity", 5), "layer 0 has outputs 0 to 1; output 2 given"),
        (("pick", "--layer", 0, "--output", 0, "--complexity", 0), "no candidate of complexity 0 or less; there are "),
    ],
)
def test_what_a_checkpoint_has_not_is_one_line(compress, checkpoint, arguments, line):
    command, *rest = arguments
    code, out, err = compress(command, checkpoint, *rest)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


def test_folders_without_expressions_are_named(compress, source, tmp_path):
    assert compress("show", tmp_path) == (2, "", f"error: {tmp_path} is no checkpoint folder: it has no config.json\n")
    line = f"error: {source} has no recipe.yaml; give a folder that `compress fit` wrote\n"
    assert compress("show", source) == (2, "", line)
    linear = {"method": "weight_svd", "targets": {"roles": ["q"]}, "rank": 4}
    folder = run.fit(tiny_recipe(source, tmp_path / "linear", linear))
    line = f"error: {folder} has no expressions; methods with expressions are residual_mlp and symbolic_mlp\n"
    assert compress("show", folder) == (2, "", line)
    code, _, err = compress("pick", folder, "--layer", 0)
    assert code == 2
    assert "Missing option" in err


def test_layers_prints_the_curves_and_how_to_fit(compress, source, tmp_path):
    file = tmp_path / "recipe.yaml"
    step = {"method": "residual_mlp", "latents": LATENTS, "affine": 2, "samples": 500}
    texts = {"texts": {"own": str(source / "text.txt")}, "length": 24}
    file.write_text(tiny_recipe(source, tmp_path / "out", step, evaluation=texts).to_yaml())
    sizes = ("--search-windows", 3, "--test-windows", 3, "--length", 24)
    code, out, err = compress("layers", file, *sizes, "--budget", 0.9, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert len(found["layers"]) == 1
    code, out, _ = compress("layers", file, *sizes, "--budget", 0.9)
    assert code == 0
    assert all(name in out for name in ("dense", "residual_mlp", "affine_mlp", "prune_channels", "layers.png"))
    assert f"--set 'steps.0.layers=[{found['layers'][0]}]'" in out.replace("\n", "")
    (tmp_path / "out" / "layers.jsonl").unlink()
    code, out, _ = compress("layers", file, *sizes, "--budget", 0.9, "--sizes", "affine=2,4", "--no-controls")
    assert code == 0
    command = shlex.split(out.partition("to fit: compress ")[2])
    code, out, err = compress(*command, "--dry-run", "--json")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["modules"]) == 1
    code, out, err = compress("layers", file, *sizes, "--budget", 2)
    assert (code, out, err) == (2, "", "error: budget: Input should be less than 1; given 2.0\n")


def test_explain_in_three_forms(compress, source):
    text = (source / "text.txt").read_text()[:30]
    given = ("explain", source, "--module", "model.layers.0.mlp", "--text", text, "--position", 4, "--neighbours", 200)
    code, out, err = compress(*given, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["outputs"][0]
    code, out, _ = compress(*given)
    assert code == 0
    assert f"y0 = {found['text']}\n" in out
    assert f"local R² {found['r2']:.3f} held out (linear {found['linear_r2']:.3f})" in out
    code, out, _ = compress(*given, "--latex")
    assert out == f"\\begin{{align}}\ny_{{0}} &= {found['latex']}\n\\end{{align}}\n"
    code, out, err = compress(*given[:3], "model.layers.0.mpl", *given[4:])
    assert (code, out) == (2, "")
    assert err.startswith("error: the model has no module 'model.layers.0.mpl'; nearest: model.layers.0.mlp")
