"""Two packages that compress does not know: a low-rank method, and an MLP method with a kind of its own."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest
import torch
import yaml
from interpreters import run_without
from long import LONG
from recipes_for_tests import logits
from transformers import AutoModelForCausalLM

import compress.kinds
import compress.methods

HERE = Path(__file__).parent
ENTRY_POINTS = {
    "random_projection": "[compress.methods]\nrandom_projection = random_projection:RandomProjection\n",
    "gated_mlp": (
        "[compress.kinds]\ngated_mlp = gated_mlp.kind:Gated\n\n[compress.methods]\ngated_mlp = gated_mlp.method:GatedFit\n"
    ),
}
STEPS = [
    {"method": "random_projection", "rank": {"keep": 0.8}, "targets": {"roles": ["q", "o", "up"], "layers": [0]}},
    {"method": "gated_mlp", "hidden": 20, "rows": 512, "layers": [1]},
]
NOWHERE = ("compress", "exporters", *ENTRY_POINTS)

ELSEWHERE = """
import runpy, sys, torch
for folder in sys.argv[1:]:
    arguments, sys.argv = sys.argv, ["model.py", "--ids", "1,2,3", "--tokens", "4"]
    runpy.run_path(folder + "/torch/model.py", run_name="__main__")
    sys.argv = arguments
assert "transformers" not in sys.modules

from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except RuntimeError as error:
        assert "ignore_mismatched_sizes" in str(error), error
    else:
        raise SystemExit("a loader that knows neither the kinds nor compress went on")

for folder in sys.argv[1:]:  # from here on this process knows the quantizer
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    assert type(model).__module__.startswith("transformers_modules")
    with torch.no_grad():
        torch.save(model(torch.arange(60).view(2, 30) % 90).logits, folder + "/elsewhere.pt")
"""


def install(site: Path) -> None:
    """Put both packages into `site` as pip does, without pip."""
    shutil.copy(HERE / "random_projection" / "random_projection.py", site)
    shutil.copytree(HERE / "gated_mlp" / "src" / "gated_mlp", site / "gated_mlp", ignore=shutil.ignore_patterns("__pycache__"))
    for name, entry_points in ENTRY_POINTS.items():
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)


def forget() -> None:
    compress.methods.registry.forget()
    compress.kinds.registry.forget()
    for name in [name for name in sys.modules if name.partition(".")[0] in ENTRY_POINTS]:
        del sys.modules[name]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path that has both packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder)
    monkeypatch.syspath_prepend(folder)
    forget()
    yield folder
    monkeypatch.undo()
    forget()


def write_recipe(folder: Path, model: Path, output: Path) -> Path:
    text = str(model / "text.txt")
    recipe = folder / "recipe.yaml"
    asked = {
        "model": str(model),
        "calibration": {"text": text, "sequences": 40, "length": 32},
        "evaluation": {"texts": {"own": text}, "sequences": 2, "length": 32},
        "steps": STEPS,
        "output": str(output),
    }
    recipe.write_text(yaml.safe_dump(asked))
    return recipe


def test_the_entry_points_are_those_of_the_packages(tmp_path: Path) -> None:
    for name, text in ENTRY_POINTS.items():
        declared = tomllib.loads((HERE / name / "pyproject.toml").read_text())["project"]["entry-points"]
        here = ConfigParser()
        here.read_string(text)
        assert declared == {group: dict(here[group]) for group in here.sections()}


@pytest.mark.usefixtures("site")
def test_both_are_listed_and_documented(compress) -> None:
    _, listed, _ = compress("methods")
    assert all(f"│ {name} " in listed for name in ENTRY_POINTS)
    _, low_rank, _ = compress("methods", "random_projection")
    assert all(option in low_rank for option in ("rank.keep", "importance", "power", "Halko"))
    _, gated, _ = compress("methods", "gated_mlp")
    assert all(option in gated for option in ("hidden", "ridge", "width of the hidden layer"))


def test_everything_takes_both(site: Path, folders, compress, tmp_path: Path) -> None:
    # opt runs its MLP inline.
    runs = {model_type: tmp_path / model_type for model_type in (("llama", "opt") if LONG else ("llama",))}
    here = {}
    for model_type, run in runs.items():
        code, _, said = compress("fit", write_recipe(tmp_path, folders(model_type), run))
        assert code == 0, said
        rows = json.loads((run / "report.json").read_text())["modules"]
        assert [row["kind"] for row in rows] == ["low_rank_linear"] * 3 + ["gated_mlp"]
        here[run] = logits(run)
        assert not torch.equal(here[run], logits(folders(model_type)))
        code, _, said = compress("export", run, "--torch", "--onnx")  # parity is measured, a breach is an error
        assert code == 0, said
        assert "class GatedMLP" in (run / "torch" / "model.py").read_text()

    run_without(NOWHERE, ELSEWHERE, tmp_path, *map(str, runs.values()))
    assert all(torch.equal(torch.load(run / "elsewhere.pt", weights_only=True), here[run]) for run in runs.values())

    sys.path.remove(str(site))
    forget()
    with pytest.raises(ValueError, match=r"unknown kind 'gated_mlp'.*a package with that kind is not installed"):
        AutoModelForCausalLM.from_pretrained(runs["llama"])


def test_what_a_method_made_is_not_taken_over_once_any_file_of_its_package_changed(site: Path) -> None:
    registry = compress.methods.registry
    before = {name: registry.source_hash(name) for name in ENTRY_POINTS}
    assert len({*before.values(), registry.source_hash("weight_svd")}) == 3
    helper = site / "gated_mlp" / "kind.py"
    helper.write_text(helper.read_text() + "# changed\n")
    after = {name: registry.source_hash(name) for name in ENTRY_POINTS}
    assert after["gated_mlp"] != before["gated_mlp"]
    assert after["random_projection"] == before["random_projection"]


def test_a_broken_package_is_one_line_and_the_others_go_on(site: Path, compress, caplog: pytest.LogCaptureFixture) -> None:
    (site / "random_projection.py").write_text("import a_module_that_nobody_has\n")
    forget()
    with caplog.at_level("WARNING"):
        code, listed, _ = compress("methods")
    (line,) = caplog.messages
    assert "random_projection" in line
    assert "a_module_that_nobody_has" in line
    assert "\n" not in line
    assert code == 0
    assert "│ gated_mlp " in listed
    assert "│ random_projection " not in listed
