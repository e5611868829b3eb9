"""A checkpoint verifies as fitted; whatever is changed afterwards is named, and nothing else."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml
from recipes_for_tests import tiny_folder, tiny_recipe
from safetensors.torch import load_file, save_file

from compress.fitting.run import fit
from compress.measuring.verify import differences, verify

FITTED = (
    {"method": "weight_svd", "targets": {"roles": ["q"], "layers": [0]}, "rank": {"keep": 0.5}},
    {"method": "skip_mlp", "layers": [1], "output": "mean"},
)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    source = tiny_folder(tmp_path_factory.mktemp("source") / "qwen2", "qwen2")
    texts = {"own": str(source / "text.txt")}
    evaluation = {"texts": texts, "length": 32, "sequences": 4, "controls": ["identity", "zero", "mean"]}
    return fit(tiny_recipe(source, tmp_path_factory.mktemp("fit") / "small", *FITTED, evaluation=evaluation))


@pytest.fixture
def folder(fitted, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(fitted, tmp_path / "small")


def _rewrite(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_fresh_checkpoint_is_as_reported(fitted):
    findings = verify(fitted)
    assert differences(findings) == []
    same = {finding.what for finding in findings if finding.verdict == "same"}
    variants = ("baseline", "compressed", "identity", "zero", "mean")
    assert {f"perplexity of {variant} on own" for variant in variants} <= same
    assert {"sha256 of model.safetensors", "calibration tokens", "parameters", "parameters of the baseline"} <= same
    assert any(what.startswith("parameters of model.layers.0") for what in same)


STEPS = [
    {"method": "feature_space", "rank": {"keep": 0.6}, "form": "pivoted"},
    {"method": "mlp_bottleneck", "layers": [1], "inputs": 8, "outputs": 4},
    {"method": "prune_channels", "layers": [0, 1], "keep": 0.5},
    {"method": "shared_basis", "rank": {"keep": 0.5}},
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["method"])
@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_every_kind_of_replacement_is_as_reported(tmp_path, model_type, step):
    source = tiny_folder(tmp_path / model_type, model_type)
    controls = [] if step["method"] in ("feature_space", "shared_basis") else ["identity", "mean"]
    evaluation = {"texts": {"own": str(source / "text.txt")}, "length": 32, "sequences": 4, "controls": controls}
    findings = verify(fit(tiny_recipe(source, tmp_path / "out", step, evaluation=evaluation)))
    assert [finding for finding in findings if finding.verdict != "same"] == []


def test_changed_weights_show_in_the_file_and_in_the_perplexity(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = {finding.what for finding in differences(verify(folder))}
    derived = {f"perplexity of {variant} on own" for variant in ("compressed", "identity", "zero", "mean")}
    assert found == {"sha256 of model.safetensors", *derived}


def test_a_wrong_number_in_the_report_is_the_only_difference(folder):
    def change(report):
        report["evaluation"]["compressed"]["own"]["perplexity"] *= 1.01
        report["parameters"]["compressed"] += 1

    _rewrite(folder / "report.json", change)
    assert [d.what for d in differences(verify(folder))] == ["parameters", "perplexity of compressed on own"]


def test_another_factor_shape_is_named(folder):
    def change(report):
        row = next(row for row in report["modules"] if "q_proj" in row["module"])
        row["parameters"] += 256
        report["evaluation"] = {}

    _rewrite(folder / "report.json", change)
    assert [d.what for d in differences(verify(folder))] == ["parameters of model.layers.0.self_attn.q_proj"]


def test_what_cannot_be_measured_is_said_and_is_no_difference(folder):
    (folder / "recipe.yaml").unlink()
    findings = verify(folder)
    assert differences(findings) == []
    assert {f.verdict for f in findings if "perplexity" in f.what} == {"not measured"}
    assert "the original model is not here" in findings[-1].note


def test_no_model_is_loaded_for_texts_that_are_not_here(folder, monkeypatch):
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["evaluation"]["texts"] = {"own": "/nowhere/text.txt"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr("compress.measuring.verify._load", lambda _: pytest.fail("a model was loaded"))
    last = verify(folder)[-1]
    assert (last.verdict, last.note.partition(":")[0]) == ("not measured", "the text is not here")


def test_fitted_controls_are_left_to_fit(folder):
    def change(report):
        report["evaluation"] = {"pca": report["evaluation"]["identity"]}

    _rewrite(folder / "report.json", change)
    last = verify(folder)[-1]
    assert (last.what, last.verdict) == ("perplexity of pca on own", "not measured")


def test_a_missing_file_is_a_difference(folder):
    def change(report):
        report["files"]["more.safetensors"] = "0" * 64
        report["evaluation"] = {}

    _rewrite(folder / "report.json", change)
    assert [(d.what, d.measured) for d in differences(verify(folder))] == [("sha256 of more.safetensors", "missing")]


def test_a_folder_without_a_report_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint with a readable report\.json"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ([], "report.json: Input should be a valid dictionary"),
        ({"modules": [3]}, "report.json: modules.0: Input should be a valid dictionary"),
        ({"evaluation": {"compressed": {"own": {}}}}, "report.json: evaluation.compressed.own.perplexity: Field required"),
        ({"parameters": {"baseline": "all"}}, "report.json: parameters.baseline: Input should be a valid integer; given 'all'"),
    ],
)
def test_a_report_that_fit_did_not_write_is_refused_in_a_line(tmp_path, report, message):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        verify(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_tolerance_is_of_the_perplexity(folder):
    def change(report):
        report["evaluation"] = {"zero": report["evaluation"]["zero"]}
        report["evaluation"]["zero"]["own"]["perplexity"] *= 1.0005

    _rewrite(folder / "report.json", change)
    assert [d.what for d in differences(verify(folder))] == ["perplexity of zero on own"]
    assert differences(verify(folder, tolerance=1e-3)) == []
