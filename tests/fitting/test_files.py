"""Whose file is whose: what a fit finds in its output, what it leaves there, and what it says where it cannot write."""

import errno
import json
import os

import pytest
import yaml
from recipes_for_tests import STEP, symbolic_step, tiny_folder, tiny_recipe

from compress.checkpoint import disk
from compress.checkpoint.files import write_text
from compress.checkpoint.manifest import FILE
from compress.checkpoint.work import work_of
from compress.explaining.fronts import expressions, pick
from compress.fitting import run

WEIGHTS = "model.safetensors"
IN_THE_WAY = "is in the way and compress did not write it"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("source"), "llama")


@pytest.fixture
def recipe(source, tmp_path):
    return tiny_recipe(source, tmp_path / "out", STEP)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_checkpoint_is_all_that_is_left_in_the_output(recipe):
    output = run.fit(recipe)
    assert names(output.parent) == {"out", "out.work"}
    assert json.loads((output / FILE).read_text())["files"]["checkpoint"].keys() == names(output) - {FILE}


@pytest.mark.parametrize("name", ["README.md", WEIGHTS, "model-00001-of-00007.safetensors", "config.json", "tokenizer.json"])
def test_a_file_of_the_users_is_refused_before_anything_is_computed(recipe, name, compress):
    write_text(recipe.output / name, "mine")
    (file := recipe.output.parent / "recipe.yaml").write_text(recipe.to_yaml())
    for dry in (["--dry-run"], []):
        code, _, said = compress("fit", file, *dry)
        assert code == 2
        assert said == f"error: {recipe.output / name} {IN_THE_WAY}; move it away, or give another output\n"
    assert {path.name: path.read_text() for path in recipe.output.iterdir()} == {name: "mine"}
    assert names(recipe.output.parent) == {"out", "recipe.yaml"}


def test_an_output_that_is_a_file_is_one_line(recipe):
    recipe.output.write_text("mine")
    with pytest.raises(ValueError, match=r"is to be a folder, and .* is a file; give another path"):
        run.fit(recipe)


def test_weights_that_were_trained_on_are_refused_and_an_edited_card_is_kept(recipe):
    output = run.fit(recipe)
    write_text(output / "README.md", "# Mine")
    with pytest.warns(UserWarning, match=r"README\.md was edited since compress wrote it, and is kept"):
        run.fit(recipe)
    assert (output / "README.md").read_text() == "# Mine"
    (output / WEIGHTS).write_bytes((output / WEIGHTS).read_bytes()[:-1] + b"x")
    with pytest.raises(FileExistsError, match=rf"{WEIGHTS} was changed since compress wrote it; move it away"):
        run.fit(recipe)


def test_a_checkpoint_of_an_earlier_version_is_taken_over(recipe):
    output = run.fit(recipe)
    before = {name: (output / name).read_bytes() for name in (WEIGHTS, "config.json", "recipe.yaml")}
    (output / FILE).unlink()
    work_of(output).rename(output / "work")
    (output / "work" / FILE).unlink()
    unit = next((output / "work" / "units").glob("*.safetensors")).stat()
    write_text(output / "notes.txt", "mine")
    assert run.fit(recipe) == output
    assert {name: (output / name).read_bytes() for name in before} == before
    assert (output / "notes.txt").read_text() == "mine"
    assert "work" not in names(output)
    assert unit.st_mtime_ns in {path.stat().st_mtime_ns for path in (work_of(output) / "units").iterdir()}


def test_fresh_forgets_work_and_nothing_else(recipe):
    output = run.fit(recipe)
    first = {path.name: path.stat().st_mtime_ns for path in (work_of(output) / "units").iterdir()}
    write_text(work_of(output) / "notes.txt", "mine")
    write_text(output / "work" / "plan.txt", "mine")
    run.fit(recipe, fresh=True)
    second = {path.name: path.stat().st_mtime_ns for path in (work_of(output) / "units").iterdir()}
    assert second.keys() == first.keys()
    assert second.items().isdisjoint(first.items())
    assert (work_of(output) / "notes.txt").read_text() == (output / "work" / "plan.txt").read_text() == "mine"


@pytest.mark.parametrize("name", [WEIGHTS, "units", "report.json", ".compress.json"])
def test_a_full_disk_is_one_line_and_costs_nothing(recipe, compress, name):
    file = recipe.output.parent / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    run.fit(recipe)
    before = {path.name: path.read_bytes() for path in recipe.output.iterdir()}
    other = [] if name != "units" else ["--set", "steps.0.targets.layers=[1]"]

    def full(moment, operation, path):
        if operation == "write" and moment == "amid" and (name in path.name or path.parent.name == name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with disk.watched(full):
        code, _, said = compress("fit", file, *other)
    assert code == 3
    assert said.splitlines()[-1].startswith("error: No space left on device: ")
    assert said.endswith("; nothing that was finished is lost: run the same command again\n")
    assert {path.name: path.read_bytes() for path in recipe.output.iterdir()} == before
    assert names(recipe.output.parent) == {"out", "out.work", "recipe.yaml"}
    assert compress("fit", file, *other)[0] == 0


def test_a_model_that_changed_is_noticed_whatever_its_times_say(tmp_path):
    source = tiny_folder(tmp_path / "source", "llama")
    output = run.fit(tiny_recipe(source, tmp_path / "out", STEP))
    before, weights = (output / WEIGHTS).read_bytes(), source / WEIGHTS
    stat, other = weights.stat(), tiny_folder(tmp_path / "other", "llama", seed=1) / WEIGHTS
    assert other.stat().st_size == stat.st_size
    # A new file, as downloads and save_pretrained make it, with the old one's times.
    other.replace(weights)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    units = names(work_of(output) / "units")
    run.fit(tiny_recipe(source, tmp_path / "out", STEP))
    assert (output / WEIGHTS).read_bytes() != before
    assert len(names(work_of(output) / "units") - units) == len(units)


def test_a_model_that_was_only_touched_or_moved_is_the_same(tmp_path):
    source = tiny_folder(tmp_path / "source", "llama")
    output = run.fit(tiny_recipe(source, tmp_path / "out", STEP))
    os.utime(source / WEIGHTS)
    moved = source.rename(tmp_path / "moved")
    units = names(work_of(output) / "units")
    run.fit(tiny_recipe(moved, tmp_path / "out", STEP))
    assert names(work_of(output) / "units") == units


def test_a_pick_survives_a_fit_of_the_same_recipe(source, tmp_path):
    recipe = tiny_recipe(source, tmp_path / "out", symbolic_step(2, 3))
    output = run.fit(recipe)
    plain = (output / WEIGHTS).read_bytes()
    (found,) = expressions(output)
    other = next(i for i in range(len(found.fronts[1].candidates)) if i != found.chosen[1])
    pick(output, 1, 1, found.fronts[1].candidates[other].complexity)
    picked = {name: (output / name).read_bytes() for name in (WEIGHTS, "config.json", "picks.json")}
    assert picked[WEIGHTS] != plain
    with pytest.warns(UserWarning, match="layer 1, output 1: the expression that was picked by hand is kept; --fresh forgets"):
        run.fit(recipe)
    assert {name: (output / name).read_bytes() for name in picked} == picked
    assert yaml.safe_load((output / "recipe.yaml").read_text())["steps"][0]["picks"]
    # Another surrogate has another front: the pick means nothing there.
    with pytest.warns(UserWarning, match="is forgotten: the surrogate is another one now"):
        run.fit(tiny_recipe(source, tmp_path / "out", symbolic_step(2, 2)))
    assert "picks.json" not in names(output)
    pick(run.fit(recipe), 1, 1, found.fronts[1].candidates[other].complexity)
    run.fit(recipe, fresh=True)
    assert (output / WEIGHTS).read_bytes() == plain


def test_config_has_one_form_whether_a_fit_was_interrupted_or_not(source, tmp_path):
    recipe = tiny_recipe(source, tmp_path / "out", {**STEP, "layers": "all"}, propagate_error=True)
    output = run.fit(recipe)
    first = {name: (output / name).read_bytes() for name in ("config.json", "report.json")}
    run.fit(recipe)  # from the files of the second pass
    assert {name: (output / name).read_bytes() for name in first} == first
    config = json.loads(first["config.json"])
    assert first["config.json"].decode() == json.dumps(config, indent=1, sort_keys=True) + "\n"
