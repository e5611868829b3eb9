"""The Python interface: a twin of every command, cheap to import."""

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from recipes_for_tests import STEP, evaluated_recipe, tiny_folder

import compress
from compress.checkpoint import disk, swap
from compress.checkpoint.work import work_of

HEAVY = {"torch", "transformers", "pydantic", "numpy", "importlib.metadata", "sympy", "yaml"}


# What `import compress` costs


def test_importing_loads_nothing_heavy():
    code = f"import sys, compress; dir(compress); print(sorted({HEAVY!r} & set(sys.modules)))"
    started = subprocess.run(
        [sys.executable, "-c", f"import sys; print(sorted({HEAVY!r} & set(sys.modules)))"], check=True, capture_output=True
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == started.stdout.decode(), "more than a bare interpreter has loaded"


def test_every_name_is_there_and_is_what_it_says():
    assert set(compress.__all__) <= set(dir(compress))
    assert {*compress._FILES, *compress._ROOMS, "__version__"} == set(compress.__all__)
    for name in compress.__all__:
        found = getattr(compress, name)
        assert name in ("__version__", *compress._ROOMS) or (callable(found) and found.__name__ == name)
    assert compress.methods.names()
    assert compress.kinds.names()
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = compress.fitt


def test_no_room_hides_a_function():
    """The import system puts a subpackage in the package's namespace, over any function of its name."""
    root = Path(compress.__file__).parent
    assert not {path.stem for path in root.iterdir()} & {*compress._FILES}


def test_type_checkers_see_every_name():
    source = Path(compress.__file__).read_text()
    block = source.partition("if TYPE_CHECKING:")[2].partition("__all__")[0]
    assert set(re.findall(r"\b\w+\b", re.sub(r"from [\w.]+ import", "", block))) == {*compress._FILES, *compress._ROOMS}


@pytest.mark.parametrize("name", ["export", "verify", "evaluate"])
def test_a_checkpoint_takes_every_option_of_the_function(name):
    ours, theirs = (inspect.signature(getattr(of, name)).parameters for of in (compress.Checkpoint, compress))
    assert [str(p) for p in ours.values()][1:] == [str(p) for p in theirs.values()][1:]


def test_every_public_function_says_what_it_takes_gives_and_raises_with_an_example():
    for name in compress._FILES:
        text = getattr(compress, name).__doc__
        for word in ("Args:", "Raises", ">>> "):
            assert word in text, f"{name}: {word}"
        assert "Returns" in text or isinstance(getattr(compress, name), type), name


# Recipes


@pytest.mark.parametrize("given", [3, ["a"], None], ids=str)
def test_a_recipe_of_another_type_is_refused(given):
    with pytest.raises(ValueError, match=f"recipe: {type(given).__name__} given; give a path, a mapping, or a Recipe"):
        compress.fit(given)


def test_a_mistake_in_a_mapping_is_the_line_that_a_file_gives(tmp_path):
    plain = {"model": "novella", "steps": [{**STEP, "rank": {"keep": 2}}], "output": "out", "sed": 1}
    (tmp_path / "recipe.yaml").write_text(json.dumps(plain))
    lines = []
    for given, origin in ((plain, "recipe"), (tmp_path / "recipe.yaml", str(tmp_path / "recipe.yaml"))):
        with pytest.raises(ValueError) as error:
            compress.fit(given)
        lines.append(str(error.value).replace(f"{origin}: ", ""))
    assert lines[0] == lines[1]
    assert "did you mean 'seed'?" in lines[0]
    assert len(lines[0].splitlines()) == 2


def test_the_same_recipe_from_a_file_a_mapping_and_itself(tmp_path):
    recipe = compress.load_recipe("quickstart")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    for given in (tmp_path / "recipe.yaml", yaml.safe_load(recipe.to_yaml()), recipe):
        assert compress.load_recipe(given).to_yaml() == recipe.to_yaml()
        assert compress.load_recipe(given, ["seed=9"]).seed == 9


def test_a_mapping_is_not_changed_by_overrides():
    plain = {"model": "novella", "steps": [STEP], "output": "out"}
    before = json.dumps(plain)
    compress.load_recipe(plain, ["steps.0.rank.keep=0.25", "seed=4"])
    assert json.dumps(plain) == before


# The checkpoint and the other twins


def test_a_checkpoint_is_a_path_with_a_short_name(fitted):
    assert re.fullmatch(r"Checkpoint\('.*out', \d\d\.\d% kept, perplexity on own \d+\.\d\d \(dense \d+\.\d\d\)\)", repr(fitted))
    assert "\n" not in repr(fitted)
    again = compress.Checkpoint(fitted)
    assert again.path == fitted.path
    assert repr(compress.Checkpoint(fitted.recipe.model.name)).count(",") == 0  # a plain model: no report
    assert len(fitted.plan.modules) == len({spec.module for spec in fitted.plan.modules}) > 4
    assert fitted.report["parameters"]["compressed"] < fitted.report["parameters"]["baseline"]
    assert [step.method for step in fitted.recipe.steps] == [STEP["method"], "symbolic_mlp"]
    assert fitted.model(dtype=torch.float16).dtype == torch.float16
    with pytest.raises(FileNotFoundError, match=r"is no checkpoint folder: it has no config\.json"):
        compress.Checkpoint(work_of(fitted.path))


def test_verify_and_evaluate(fitted):
    assert {finding.verdict for finding in fitted.verify()} == {"same"}
    text = str(fitted.recipe.evaluation.texts["own"].text)
    found = fitted.evaluate(texts=[text], length=32, sequences=4)
    assert found[text]["perplexity"] == pytest.approx(fitted.report["evaluation"]["compressed"]["own"]["perplexity"], rel=1e-4)
    with pytest.raises(ValueError, match="nothing to evaluate; give texts, tasks, or both"):
        fitted.evaluate()


def test_export(fitted, tmp_path):
    found = fitted.export(torch=True, out=tmp_path)
    assert found["torch"]["greedy_agreement"] == 1
    assert (tmp_path / "torch" / "model.py").is_file()
    with pytest.raises(ValueError, match="nothing to export"):
        fitted.export()
    with pytest.raises(ValueError, match="give torch too"):
        fitted.export(onnx=True, pt2=True)
    with pytest.raises(ValueError, match="give onnx too"):
        fitted.export(torch=True, agreement=0.9)
    with pytest.raises(ValueError, match="opset 17 cannot be written"):
        fitted.export(onnx=True, torch=True, opset=17, out=tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_bench_and_report(fitted, tmp_path):
    sizes = {"contexts": [8], "prefill": 8, "steps": 2, "repeats": 2, "cold_starts": 0, "variants": ["compressed"]}
    results = fitted.bench(runtimes=["eager"], devices=["cpu"], **sizes, out=tmp_path / "results.json")
    assert len(results["rows"]) == 2
    drawn = compress.report(tmp_path)
    assert drawn["page"] == tmp_path / "report.html"
    assert compress.report(results, tmp_path / "again")["markdown"].read_text() == drawn["markdown"].read_text()
    with pytest.raises(ValueError, match="out: give the folder"):
        compress.report(results)


def test_search_sweep_and_layers(tmp_path):
    folder = tiny_folder(tmp_path / "model", "llama")
    windows = {"search_windows": 2, "test_windows": 2, "length": 24}
    texts = {"texts": {"own": str(folder / "text.txt")}, "length": 32}
    recipe = evaluated_recipe(folder, tmp_path / "search", evaluation=texts)
    found = compress.search(recipe, tolerance=0.1, **windows)
    assert found == json.loads((tmp_path / "search" / "ranks.json").read_text())
    recipe = evaluated_recipe(folder, tmp_path / "sweep")
    points = compress.sweep(recipe, {"steps.0.rank.keep": [0.5, 0.25]}, overrides=["seed=3"])
    assert [point["name"] for point in points] == ["keep=0.5", "keep=0.25"]
    assert compress.Checkpoint(tmp_path / "sweep" / "keep=0.5").recipe.seed == 3
    listed = compress.sweep(recipe, overrides=["steps.0.rank.keep=[0.5, 0.25]", f"output={tmp_path / 'lists'}"])
    assert [point["name"] for point in listed] == ["0.5", "0.25"]
    with pytest.raises(ValueError, match="a sweep needs a key with several values"):
        compress.sweep(recipe)
    recipe = evaluated_recipe(folder, tmp_path / "layers", {"method": "skip_mlp"}, evaluation=texts)
    assert sorted(compress.layers(recipe, controls=False, **windows)["layers"]) == [0, 1]


def test_expressions_and_pick(fitted):
    (front,) = fitted.expressions()
    assert front.layer == 1
    least = min(candidate.complexity for candidate in front.fronts[0].candidates)
    picked = fitted.pick(1, 0, least)
    assert picked.fronts[0].candidates[picked.chosen[0]].complexity == least
    with pytest.raises(ValueError, match="layer 0 has no expressions"):
        fitted.expressions(0)


def test_explain_takes_a_folder_and_a_model(fitted):
    text = Path(fitted.recipe.evaluation.texts["own"].text).read_text()[:60]
    options = {"inputs": 2, "neighbours": 100}
    from_folder = compress.explain(fitted.recipe.model.name, "model.layers.0.mlp", text, **options)
    model = compress.from_pretrained(fitted.recipe.model.name, dtype=torch.float32).eval()
    from_memory = compress.explain(model, "model.layers.0.mlp", text, tokenizer=fitted.tokenizer(), **options)
    assert from_folder.text() == from_memory.text()
    with pytest.raises(ValueError, match="tokenizer: give that of the model in memory"):
        compress.explain(model, "model.layers.0.mlp", text)


def test_evaluate_and_explain_finish_what_a_killed_run_left(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_renameat2", lambda: None)  # file after file: between two of them it is no checkpoint
    source, out = folders("llama"), tmp_path / "out"

    def put():
        with swap.replacing(out, "checkpoint") as stage:
            shutil.copytree(source, stage, dirs_exist_ok=True)

    def kill(moment, operation, path):
        if not (out / "config.json").exists():
            raise KeyboardInterrupt

    def evaluate():
        compress.evaluate(out, texts=[str(source / "text.txt")], length=32, sequences=1)

    def explain():
        compress.explain(out, "model.layers.0.mlp", (source / "text.txt").read_text()[:60], inputs=2, neighbours=100)

    put()
    for ask in (evaluate, explain):
        with pytest.MonkeyPatch.context() as patch, disk.watched(kill):
            patch.setattr(swap, "recover", lambda _: None)  # in a killed process nothing cleans up
            with pytest.raises(KeyboardInterrupt):
                put()
        assert swap.interrupted(out)
        ask()
        assert not swap.interrupted(out)


# Progress


def test_progress_is_silent_a_bar_or_a_function(tmp_path, capfd):
    folder = tiny_folder(tmp_path / "model", "llama")
    compress.fit(evaluated_recipe(folder, tmp_path / "silent"))
    heard = []

    def listen(description, total):
        heard.append((description, total))
        return lambda note="", done=1: None

    compress.fit(evaluated_recipe(folder, tmp_path / "told"), progress=listen)
    assert {"evaluate", "write checkpoint"} <= {description for description, _ in heard}
    compress.fit(evaluated_recipe(folder, tmp_path / "bar"), progress="bar")  # no terminal here
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="progress: 'bars' given; give \"bar\""):
        compress.fit(evaluated_recipe(folder, tmp_path / "no"), progress="bars")


def test_only_the_command_line_prints():
    root = Path(compress.__file__).parents[1]
    printing = {
        str(path.relative_to(root))
        for top in ("compress", "exporters")
        for path in (root / top).rglob("*.py")
        if "cli" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    }
    # The hook must not import logging; the others are programs: a child process's answer, a maker of texts.
    programs = {"compress/measuring/cold_start.py", "compress/novella/sample.py"}
    assert printing == {"compress/loading/hook.py", *programs}
