"""A sweep is many checkpoints from one pass: the same as fitting each by itself, resumable, in one json and one picture."""

import json

import pytest
import yaml
from recipes_for_tests import tiny_folder, tiny_recipe

from compress.checkpoint.work import work_of
from compress.fitting import acceptance, run
from compress.recipe import Recipe
from compress.reporting import plots
from compress.searching import sweep
from compress.searching.points import parse_setting, points_of_lists, rank_lists
from compress.stream.hidden import Hidden
from compress.stream.model import StreamedModel

STEP = {"method": "feature_space", "rank": {"keep": 0.5}}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("source"), "llama")


def recipe_data(source, output, *steps, texts=True):
    more = {"evaluation": {"texts": {"own": str(source / "text.txt")}, "length": 32, "sequences": 4}} if texts else {}
    return yaml.safe_load(tiny_recipe(source, output, *(steps or (STEP,)), **more).to_yaml())


@pytest.fixture
def counted(monkeypatch):
    """Counts of passes over the calibration tokens."""
    calls = {"embed": 0, "advance": 0, "retreat": 0}

    def counting(name, original):
        def method(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        return method

    for owner, name in ((StreamedModel, "embed"), (Hidden, "advance"), (Hidden, "retreat")):
        monkeypatch.setattr(owner, name, counting(name, getattr(owner, name)))
    monkeypatch.setattr(acceptance, "nll", lambda *_: 1.0)  # a pass of its own for every point
    return calls


def test_all_points_cost_one_statistics_pass(source, tmp_path, counted):
    settings = ["steps.0.rank.keep=0.8,0.6,0.4", "steps.0.method=feature_space,whitened_svd"]
    points = sweep.sweep(recipe_data(source, tmp_path, texts=False), settings)
    assert len(points) == 6
    assert counted == {"embed": 1, "advance": 2, "retreat": 0}  # two layers, whatever the number of points
    assert len(list((work_of(tmp_path) / "units").glob("*.safetensors"))) == 2 * 14  # one decomposition a method and matrix


def test_a_point_is_the_checkpoint_that_fit_writes(source, tmp_path):
    sweep.sweep(recipe_data(source, tmp_path / "sweep", texts=False), ["steps.0.rank.keep=0.8,0.4"])
    alone = run.fit(tiny_recipe(source, tmp_path / "alone", {**STEP, "rank": {"keep": 0.4}}))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "sweep" / "keep=0.4" / name).read_bytes() == (alone / name).read_bytes()


def test_points_and_picture_are_written(source, tmp_path):
    step = {**STEP, "rank": {"explained_variance": 0.9}}
    settings = ["steps.0.rank.explained_variance=0.99,0.5", "steps.0.form=pivoted"]
    points = sweep.sweep(recipe_data(source, tmp_path, step), settings)
    assert json.loads((tmp_path / "sweep.json").read_text())["points"] == points
    assert [p["settings"] for p in points] == [{"steps.0.rank.explained_variance": v} for v in (0.99, 0.5)]
    for point, threshold in zip(points, (0.99, 0.5), strict=True):
        assert len(point["explained_variance"]) == 14
        assert all(v >= threshold - 1e-6 for v in point["explained_variance"].values())
        assert point["evaluation"]["compressed"]["own"]["perplexity"] > 0
    assert all(a > b for a, b in zip(points[0]["ranks"].values(), points[1]["ranks"].values(), strict=True))
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_finished_points_are_skipped_and_changed_ones_are_not(source, tmp_path, monkeypatch):
    fitted = []
    original = run.fit
    monkeypatch.setattr(run, "fit", lambda recipe, **more: fitted.append(recipe.output.name) or original(recipe, **more))
    data = recipe_data(source, tmp_path, texts=False)
    sweep.sweep(data, ["steps.0.rank.keep=0.8,0.6"])
    assert fitted == ["keep=0.8", "keep=0.6"]
    points = sweep.sweep(data, ["steps.0.rank.keep=0.8,0.6,0.4"])
    assert fitted[2:] == ["keep=0.4"]
    assert [p["name"] for p in points] == ["keep=0.8", "keep=0.6", "keep=0.4"]
    (tmp_path / "keep=0.6" / "config.json").unlink()  # not a checkpoint any more
    sweep.sweep(data, ["steps.0.rank.keep=0.8,0.6,0.4"])
    assert fitted[3:] == ["keep=0.6"]
    sweep.sweep({**data, "seed": 1}, ["steps.0.rank.keep=0.8,0.6,0.4"])
    assert len(fitted) == 4 + 3


def test_a_list_in_a_rank_rule_is_one_checkpoint_per_value(source, tmp_path, counted):
    data = recipe_data(source, tmp_path, {**STEP, "importance": "fisher", "form": "pivoted"}, texts=False)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    points = sweep.fit_points(points_of_lists(tmp_path / "recipe.yaml", ["steps.0.rank={budget: [0.8, 0.5]}"]))
    assert [p["name"] for p in points] == ["0.8", "0.5"]
    assert counted == {"embed": 1, "advance": 2, "retreat": 2}
    for point, budget in zip(points, (0.8, 0.5), strict=True):
        assert (tmp_path / point["name"] / "config.json").is_file()
        kept = point["parameters"]["targeted_compressed"] / point["parameters"]["targeted_baseline"]
        assert budget - 0.05 < kept <= budget


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        ({"keep": [0.8, 0.6]}, {"steps.0.rank.keep": [0.8, 0.6]}),
        ([4, 8], {"steps.0.rank": [4, 8]}),
        ({"keep": 0.8}, {}),
        (4, {}),
    ],
)
def test_lists_are_found(rank, expected):
    assert rank_lists({"steps": [{"method": "feature_space", "rank": rank}]}) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["steps.0.rank.keep=0.8"], "a sweep needs a key with several values, such as --set steps.0.rank.keep=0.8,0.6,0.4"),
        (["keep"], "--set 'keep': write dotted.key=a,b,c, such as steps.0.rank.keep=0.8,0.6,0.4"),
        (["seed=[1"], "--set 'seed=[1': write dotted.key=a,b,c, such as steps.0.rank.keep=0.8,0.6,0.4"),
        (["seed=1,1"], "two points of the sweep are named 'seed=1'; give each value once"),
        (["sed=1,2"], "recipe: sed: unknown key 'sed'; did you mean 'seed'? allowed: {keys}"),
    ],
)
def test_settings_that_make_no_sweep(source, tmp_path, settings, message):
    keys = ", ".join(Recipe.model_fields)
    with pytest.raises(ValueError) as error:
        sweep.sweep(recipe_data(source, tmp_path), settings)
    assert str(error.value) == message.format(keys=keys)


def test_brackets_keep_a_value_together():
    assert parse_setting("steps.0.targets.layers=[0, 1],[2]") == ("steps.0.targets.layers", [[0, 1], [2]])


def test_a_picture_has_a_panel_per_text_and_a_curve_per_further_value(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "panels", lambda drawings, path: drawn.extend(drawings))
    texts = {"own": {"perplexity": 9.0}, "other": {"perplexity": 8.0}}
    rows = [
        {
            "settings": {"steps.0.rank.keep": keep, "steps.0.method": method},
            "evaluation": {"baseline": texts, "compressed": {text: {"perplexity": 10 / keep} for text in texts}},
        }
        for keep in (0.5, 1.0)
        for method in ("pca", "svd")
    ]
    assert sweep.plot(rows, tmp_path / "sweep.png")
    assert [panel.title for panel in drawn] == ["perplexity, own", "perplexity, other"]
    assert [panel.baseline for panel in drawn] == [9.0, 8.0]
    assert all(panel.x_label == "steps.0.rank.keep" for panel in drawn)
    curve = [(0.5, 20.0), (1.0, 10.0)]
    assert all(panel.points == {"method=pca": curve, "method=svd": curve} for panel in drawn)


def test_two_numeric_keys_make_a_heat_map(tmp_path):
    rows = [
        {"settings": {"a": a, "b": b}, "evaluation": {"compressed": {"own": {"perplexity": 10.0**a + b}}}}
        for a in (1, 2, 3)
        for b in (0.5, 0.25)
    ]
    assert sweep.plot(rows, tmp_path / "map.png")
    assert sweep.plot([{**r, "settings": {"a": str(r["settings"]["a"])}} for r in rows], tmp_path / "none.png") is False
    assert not (tmp_path / "none.png").exists()
