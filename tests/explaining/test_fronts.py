"""Fronts are read back from a checkpoint's unit files; picking by hand changes that output alone and fits nothing again."""

import json

import pytest
from recipes_for_tests import tiny_folder, tiny_recipe

from compress.checkpoint.work import work_of
from compress.explaining.fronts import expressions, pick
from compress.fitting import run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    source = tiny_folder(tmp_path_factory.mktemp("model"), "llama")
    latents = {"inputs": 4, "outputs": 2}
    steps = [
        {"method": "symbolic_mlp", "layers": [0], "latents": latents, "samples": 500, "engine": {"name": "sparse"}},
        {"method": "residual_mlp", "layers": [1], "latents": latents, "affine": 4, "samples": 500},
    ]
    return run.fit(tiny_recipe(source, tmp_path_factory.mktemp("run") / "out", *steps))


def test_every_output_has_a_front_and_the_chosen_one_is_in_it(checkpoint):
    found = expressions(checkpoint)
    assert [e.layer for e in found] == [0, 1]
    for item in found:
        data = json.loads(json.dumps(item.to_json(), allow_nan=False))
        assert len(data["outputs"]) == 2
        for output in data["outputs"]:
            sizes = [c["complexity"] for c in output["candidates"]]
            assert sizes == sorted(sizes)
            assert 0 <= output["chosen"] < len(sizes)
        assert item.latex().count("&=") == 2
    assert expressions(checkpoint, 1)[0].to_json() == found[1].to_json()


def test_picking_changes_that_output_and_fits_nothing(checkpoint, monkeypatch):
    before = expressions(checkpoint, 0)[0]
    sizes = [c.complexity for c in before.fronts[1].candidates]
    other = next(i for i in range(len(sizes)) if i != before.chosen[1])
    units = {p.name: p.stat().st_mtime_ns for p in (work_of(checkpoint) / "units").glob("*.safetensors")}
    weights = (checkpoint / "model.safetensors").read_bytes()
    pick(checkpoint, 0, 1, sizes[other])
    after = expressions(checkpoint, 0)[0]
    assert after.chosen == (before.chosen[0], other)
    assert expressions(checkpoint, 1)[0].chosen == expressions(checkpoint)[1].chosen
    assert {p.name: p.stat().st_mtime_ns for p in (work_of(checkpoint) / "units").glob("*.safetensors")} == units
    assert (checkpoint / "model.safetensors").read_bytes() != weights
    row = json.loads((checkpoint / "report.json").read_text())["modules"][0]
    assert row["complexity"][1] == sizes[other]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7, 0, 5), "layer 7 has no expressions; layers with expressions: 0, 1"),
        ((0, 9, 5), "layer 0 has outputs 0 to 1; output 9 given"),
        ((0, 0, 0), "no candidate of complexity 0 or less"),
    ],
)
def test_what_is_not_there_is_named(checkpoint, arguments, message):
    with pytest.raises(ValueError, match=message):
        pick(checkpoint, *arguments)


def test_a_folder_without_units_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no recipe.yaml"):
        expressions(tmp_path)
