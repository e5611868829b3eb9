"""The command line: 0, 1 and 2 mean done, a measured breach and a user's mistake; a mistake is one line; JSON is JSON."""

import json
import re
import shlex

import pytest
from recipes_for_tests import tiny_folder, tiny_recipe

from compress import methods
from compress.checkpoint.shards import Shards
from compress.fitting import run
from compress.packaged import recipes_folder
from compress.recipe import load_recipe, read_yaml
from compress.searching.points import points_of_settings

STEP = {"method": "feature_space", "targets": {"roles": ["q", "v"]}, "rank": {"keep": 0.5}}


@pytest.fixture
def recipe(tmp_path):
    folder = tiny_folder(tmp_path / "model", "llama")
    texts = {"texts": {"own": str(folder / "text.txt")}, "length": 32, "sequences": 2}
    file = tmp_path / "recipe.yaml"
    file.write_text(tiny_recipe(folder, tmp_path / "out", STEP, evaluation=texts).to_yaml())
    return file


def test_fit_prints_a_table_and_where_the_checkpoint_is(compress, recipe, tmp_path):
    code, out, _ = compress("fit", recipe)
    assert code == 0
    assert "compressed" in out
    assert "baseline" in out
    assert out.replace("\n", "").endswith(f"checkpoint: {tmp_path / 'out'}")


def test_fit_json(compress, recipe, tmp_path):
    code, out, _ = compress("fit", recipe, "--json", "--set", "steps.0.rank.keep=0.4", "--fresh")
    assert code == 0
    found = json.loads(out)
    assert found["output"] == str(tmp_path / "out")
    assert {"parameters", "modules", "evaluation", "files"} <= set(found)


def test_a_dry_run_reads_no_weight(compress, recipe, tmp_path, monkeypatch):
    for name in ("tensor", "under"):
        monkeypatch.setattr(Shards, name, lambda *_: pytest.fail("a weight was read"))
    code, out, _ = compress("fit", recipe, "--dry-run", "--json")
    assert code == 0
    plan = json.loads(out)
    assert [m["module"] for m in plan["modules"]] == [
        f"model.layers.{i}.self_attn.{name}_proj" for i in range(2) for name in "qv"
    ]
    assert all(m["after"] < m["before"] for m in plan["modules"])
    assert plan["expected_peak_bytes"] > 0
    code, out, _ = compress("fit", recipe, "--dry-run", "--set", "steps.0.rank.keep=[0.5, 0.25]")
    assert code == 0
    assert out.count("4 modules") == 2
    assert "0.25" in "".join(out.split())  # a long path is folded
    assert not (tmp_path / "out").exists()


def test_fit_with_a_list_writes_one_checkpoint_per_value(compress, recipe, tmp_path):
    code, out, _ = compress("fit", recipe, "--json", "--set", "steps.0.rank.keep=[0.5, 0.25]")
    assert code == 0
    assert [p["name"] for p in json.loads(out)["points"]] == ["0.5", "0.25"]
    assert all((tmp_path / "out" / name / "config.json").is_file() for name in ("0.5", "0.25"))


def test_sweep(compress, recipe, tmp_path):
    arguments = ("sweep", recipe, "--set", "steps.0.rank.keep=0.5,0.25", "--set", "steps.0.form=plain,pivoted")
    code, out, _ = compress(*arguments)
    assert code == 0
    assert out.count("pivoted") == 2
    assert "dense" in out
    code, out, _ = compress(*arguments, "--json")  # finished: nothing is fitted again
    found = json.loads(out)
    assert found["output"] == str(tmp_path / "out")
    assert [p["name"] for p in found["points"]] == [f"keep={k},form={f}" for k in (0.5, 0.25) for f in ("plain", "pivoted")]


def test_search(compress, recipe, tmp_path):
    sizes = ("--search-windows", 2, "--test-windows", 2, "--length", 24, "--tolerance", 0.1)
    code, out, _ = compress("search", recipe, *sizes)
    assert code == 0
    assert all(word in out for word in ("dense", "surgical", "uniform", "test split"))
    code, out, _ = compress("search", recipe, *sizes, "--json")
    assert json.loads(out)["ranks"] == json.loads((tmp_path / "out" / "ranks.json").read_text())["ranks"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("fit", "nowhere.yaml"), "no recipe 'nowhere.yaml'; `compress recipes ls` lists the packaged ones"),
        (("methods", "feature_spce"), "unknown method 'feature_spce'; did you mean 'feature_space'? allowed: {methods}"),
        (("recipes", "cp", "nowhere.yaml"), "no recipe 'nowhere.yaml'; `compress recipes ls` lists the packaged ones"),
        (("export", "."), "nothing to export; give onnx, torch, or both"),
        (("export", ".", "--onnx", "--pt2"), "pt2 is traced from the standalone torch code; give torch too"),
        (("export", ".", "--torch", "--quantize", "int8"), "quantize and agreement are of a second ONNX graph; give onnx too"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(compress, arguments, line):
    code, out, err = compress(*arguments)
    assert (code, out, err) == (2, "", f"error: {line.format(methods=', '.join(methods.names()))}\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("fit", "--set", "steps.0.rank.keep=2"),
            "{file}: steps.0: rank.keep: Input should be less than or equal to 1; given 2",
        ),
        (("fit", "--set", "sed=1"), "unknown key 'sed'; did you mean 'seed'?"),
        (("fit", "--set", "steps.0.layers=[9]"), "targets: layer 9 given; the model has layers 0 to 1"),
        (("fit", "--set", "steps.0.rank.keep=[]"), "steps.0.rank.keep: the list is empty; give one value or several"),
        (("fit", "--set", "model=/nowhere/model"), "no model folder '/nowhere/model'. Allowed: novella, a local folder"),
        (("fit", "--set", "calibration.text=nowhere.txt"), "no file 'nowhere.txt'"),
        (("sweep", "--set", "seed=1"), "a sweep needs a key with several values"),
        (("search", "--tolerance", "-1"), "tolerance: Input should be greater than or equal to 0; given -1.0"),
        (("search", "--metric", "tasks"), "metric tasks goes with a file of questions"),
        (("search", "--metric", "speed"), "metric: Input should be 'perplexity' or 'tasks'; given 'speed'"),
        (("search", "--test-windows", "900"), "lower --search-windows, --test-windows or --length"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line_too(compress, recipe, arguments, line):
    command, *rest = arguments
    code, out, err = compress(command, recipe, *rest)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line.format(file=recipe) in err


def test_unknown_options_and_commands_exit_with_two(compress, recipe):
    for arguments in (("fit", recipe, "--kep", "0.5"), ("ft", recipe), ("fit",)):
        code, out, err = compress(*arguments)
        assert (code, out) == (2, "")
        assert err
        assert "Traceback" not in err


def test_a_measured_breach_exits_with_one(compress, recipe, monkeypatch):
    def breach(*_, **__):
        raise RuntimeError("the loss of window 3 is nan: the model overflows there")

    monkeypatch.setattr(run, "fit", breach)
    assert compress("fit", recipe) == (1, "", "failed: the loss of window 3 is nan: the model overflows there\n")


def test_an_interruption_says_how_to_continue(compress, recipe, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "fit", interrupted)
    code, _, err = compress("fit", recipe)
    assert code == 130
    assert err == "interrupted; finished units are kept: run the same command again to continue\n"


def test_methods_are_listed_and_documented(compress):
    code, out, _ = compress("methods")
    assert code == 0
    assert "feature_space" in out
    code, out, _ = compress("methods", "--json")
    assert set(json.loads(out)) == set(methods.names())
    code, out, _ = compress("methods", "weight_svd")
    assert code == 0
    for option in ("rank.keep", "form", "importance", "centre"):
        assert option in out
    code, out, _ = compress("methods", "weight_svd", "--json")
    assert json.loads(out)["weight_svd"]["additionalProperties"] is False


def test_every_method_option_is_documented():
    for name in methods.names():
        for option, field in methods.load(name).model_fields.items():
            assert field.description, f"{name}.{option} has no description for `compress methods {name}`"


def test_recipes_are_listed_and_copied(compress, tmp_path, monkeypatch):
    code, out, _ = compress("recipes", "ls")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} == {p.name for p in recipes_folder().glob("*.yaml")}
    assert all(len(line.split()) > 3 for line in out.splitlines())  # a header that says what it does
    code, out, _ = compress("recipes", "cp", "quickstart", tmp_path)
    assert code == 0
    assert (tmp_path / "quickstart.yaml").read_text() == (recipes_folder() / "quickstart.yaml").read_text()
    code, _, err = compress("recipes", "cp", "quickstart", tmp_path)
    assert (code, err) == (2, f"error: {tmp_path / 'quickstart.yaml'} exists already; give another target\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").unlink()
    code, _, err = compress("fit", "quickstart", "--dry-run", "--json")  # a packaged recipe by its name alone
    assert (code, err) == (0, "")


def header_commands(file):
    """The commands of a recipe's header, as arguments; a backslash at the end of a line continues it."""
    header = "\n".join(line.removeprefix("#").strip() for line in file.read_text().splitlines() if line.startswith("#"))
    found = re.findall(rf"compress (?:\w+) recipes/{file.name}[^\n]*", header.replace("\\\n", " "))
    return [shlex.split(re.split(r"\s{2,}\(", command)[0])[1:] for command in found]


@pytest.mark.parametrize("file", sorted(recipes_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_packaged_recipe_is_valid_and_says_how_to_run_it_on_the_packaged_model(compress, file):
    """A recipe for a model of the hub has the command that runs it on novella in its header."""
    commands = header_commands(file)
    assert commands
    plain = read_yaml(file)["model"] == "novella"
    here = ["fit", str(file)] if plain else next(c for c in commands if "model=novella" in c and c[0] == "fit")
    code, out, err = compress("fit", file, *here[2:], "--dry-run", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["modules"]


@pytest.mark.parametrize("file", sorted(recipes_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_command_of_a_recipes_header_parses(file):
    for command, _, *rest in header_commands(file):
        settings = [rest[i + 1] for i, word in enumerate(rest) if word == "--set"]
        if command == "sweep":
            assert points_of_settings(file, settings)
        elif not any("table:" in setting for setting in settings):  # a file that the search writes
            load_recipe(file, settings)
        assert command in ("fit", "sweep", "search", "layers")


def test_version_and_help(compress):
    from compress import __version__

    assert compress("--version") == (0, f"{__version__}\n", "")
    code, out, _ = compress("--help")
    assert code == 0
    assert all(command in out for command in ("fit", "sweep", "search", "methods", "recipes"))


def test_methods_are_described_by_a_whole_sentence_in_which_brackets_stay(compress):
    _, out, _ = compress("methods", "whitened_svd")
    assert "U the eigenvectors of E[y yᵀ].".replace(" ", "") in re.sub(r"[\s│]", "", out)
    _, out, _ = compress("methods", "feature_space")
    assert "thebiasrestoresthedroppedmean." in re.sub(r"[\s│]", "", out)
