"""A mistake in a recipe is one line that says what was given, what is allowed and the nearest name; nothing is read for it."""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes_for_tests import tiny_folder

from compress import methods
from compress.checkpoint.shards import Shards
from compress.fitting import run
from compress.fitting.job import prepare
from compress.reading.overrides import set_value
from compress.recipe import Recipe, load_recipe, parse_recipe

METHODS = ", ".join(methods.names())
TOP = "model, calibration, steps, propagate_error, refine, finetune, keep_dense_if_slower, evaluation, compute, output, seed"


def plain(**changes):
    """Recipe data for the packaged model; `step` changes the only step."""
    step = {"method": "feature_space", "rank": {"keep": 0.8}, **changes.pop("step", {})}
    text = {} if changes.get("model", "novella") == "novella" else {"calibration": {"text": "novella"}}
    return {"model": "novella", "steps": [step], "output": "out", **text, **changes}


def parsing(data):
    with pytest.raises(ValueError) as error:
        parse_recipe(data, origin="r.yaml")
    return str(error.value)


def preparing(data):
    with pytest.raises(ValueError) as error:
        prepare(parse_recipe(data))
    return str(error.value)


RULES = "rank, keep, explained_variance, budget, ranks, table"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"ouput": "x"}, f"r.yaml: ouput: unknown key 'ouput'; did you mean 'output'? allowed: {TOP}"),
        ({"zzz": 1}, f"r.yaml: zzz: unknown key 'zzz'; allowed: {TOP}"),
        (
            {"evaluation": {"lenght": 8}},
            "r.yaml: evaluation.lenght: unknown key 'lenght'; did you mean 'length'? "
            "allowed: texts, length, sequences, bos, controls",
        ),
        (
            {"model": {"name": "novella", "revison": "main"}},
            "r.yaml: model.revison: unknown key 'revison'; did you mean 'revision'? allowed: name, revision",
        ),
        (
            {"step": {"method": "feature_spce"}},
            f"r.yaml: steps.0: unknown method 'feature_spce'; did you mean 'feature_space'? allowed: {METHODS}",
        ),
        ({"steps": [{"rank": 3}]}, f"r.yaml: steps.0: a step needs method: one of {METHODS}"),
        ({"steps": []}, "r.yaml: steps: List should have at least 1 item after validation, not 0"),
        ({"step": {"rank": {"keep": 0}}}, "r.yaml: steps.0: rank.keep: Input should be greater than 0; given 0"),
        ({"step": {"rank": {"keep": 1.5}}}, "r.yaml: steps.0: rank.keep: Input should be less than or equal to 1; given 1.5"),
        ({"step": {"rank": 0}}, "r.yaml: steps.0: rank.rank: Input should be greater than or equal to 1; given 0"),
        ({"step": {"rank": {}}}, f"r.yaml: steps.0: rank: give exactly one of {RULES}; given: none"),
        (
            {"step": {"rank": {"keep": 0.5, "rank": 4}}},
            f"r.yaml: steps.0: rank: give exactly one of {RULES}; given: rank, keep",
        ),
        (
            {"step": {"rank": {"kep": 0.5}}},
            "r.yaml: steps.0: rank.kep: unknown key 'kep'; did you mean 'keep'? "
            "allowed: rank, keep, explained_variance, budget, allocation, ranks, table",
        ),
        (
            {"step": {"rank": {"keep": 0.5, "allocation": "uniform"}}},
            "r.yaml: steps.0: rank: allocation belongs to budget; keep decides each rank by itself",
        ),
        (
            {"step": {"targets": {"role": ["q"]}}},
            "r.yaml: steps.0.targets.role: unknown key 'role'; did you mean 'roles'? allowed: roles, layers, modules",
        ),
        (
            {"step": {"targets": {"modules": ["*"], "roles": ["q"]}}},
            "r.yaml: steps.0.targets: give globs (modules) or roles and layers, not both",
        ),
        (
            {"step": {"layers": ["0-x"]}},
            "r.yaml: steps.0.targets.layers: layers: '0-x' is neither an index nor a range such as 0-3",
        ),
        (
            {"step": {"layers": [0], "targets": {"layers": [1]}}},
            "r.yaml: steps.0: layers is given twice: beside targets and inside it, or beside globs",
        ),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_mistakes_in_the_data(changes, line):
    assert parsing(plain(**changes)) == line


def test_every_mistake_has_its_line():
    lines = parsing(plain(sed=1, evaluation={"length": 1})).splitlines()
    assert lines == [
        "r.yaml: evaluation.length: Input should be greater than or equal to 2; given 1",
        f"r.yaml: sed: unknown key 'sed'; did you mean 'seed'? allowed: {TOP}",
    ]


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_a_recipe_is_a_mapping(data):
    assert parsing(data) == f"r.yaml: a recipe is a mapping with the keys {TOP}"


MODULE = "model.layers.0.self_attn.q_proj"
TOO_HIGH = f"{MODULE}: rank 129 given, at most min(128, 128) = 128 is possible"


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ({"layers": [6]}, "targets: layer 6 given; the model has layers 0 to 5"),
        ({"layers": [-7]}, "targets: layer -7 given; the model has layers 0 to 5"),
        ({"layers": []}, 'targets: {"layers": []} matches nothing; give roles and layers'),
        ({"targets": {"roles": []}}, 'targets: {"roles": []} matches nothing; give roles and layers'),
        (
            {"targets": {"roles": ["gates"]}},
            "targets: role 'gates' is not in qwen2; did you mean 'gate'? allowed: q, k, v, o, gate, up, down",
        ),
        (
            {"targets": [MODULE], "rank": 65},
            f"{MODULE}: rank 65 in plain form stores more than the dense 128×128 matrix; give at most 64, or form: pivoted",
        ),
        ({"targets": [MODULE], "rank": 129}, TOO_HIGH),
        ({"targets": [MODULE], "rank": 129, "form": "pivoted"}, TOO_HIGH),
        (
            {"targets": [MODULE], "rank": {"ranks": {"elsewhere": 3}}},
            f"ranks: no rank for {MODULE}; it has 1 modules, the first elsewhere",
        ),
    ],
)
def test_mistakes_against_the_model(step, line):
    assert preparing(plain(step=step)) == line


def test_a_glob_that_matches_nothing_names_the_nearest_module():
    message = preparing(plain(step={"targets": ["model.layers.0.self_attn.q_prj"]}))
    assert message.startswith(
        f"targets: 'model.layers.0.self_attn.q_prj' matches no module; did you mean '{MODULE}'? allowed: "
    )
    assert "\n" not in message


@pytest.mark.parametrize("place", ["model", "model/small", ".", "link", "model/../model"])
def test_an_output_that_touches_the_models_folder_is_refused_before_anything_is_written(tmp_path, place):
    source = tiny_folder(tmp_path / "here" / "model", "llama")
    (tmp_path / "here" / "link").symlink_to(source)
    before = {file: file.read_bytes() for file in source.iterdir()}
    data = plain(model=str(source), output=str(tmp_path / "here" / place))
    assert "the model's own folder" in preparing(data)
    with pytest.raises(ValueError, match=r"give another, such as .*model-compressed"):
        run.fit(parse_recipe(data))
    assert {file: file.read_bytes() for file in source.iterdir()} == before
    assert sorted(file.name for file in (tmp_path / "here").iterdir()) == ["link", "model"]


def test_an_output_beside_the_model_is_not(tmp_path):
    source = tiny_folder(tmp_path / "model", "llama")
    prepare(parse_recipe(plain(model=str(source), output=str(tmp_path / "model-compressed"))))


def test_two_steps_on_one_module():
    first, second = {"method": "feature_space", "rank": 4}, {"method": "weight_svd", "rank": 4, "targets": [MODULE]}
    expected = f"steps.0 and steps.1 both replace {MODULE}; narrow the targets so that each module has one step"
    assert preparing(plain(steps=[first, second])) == expected
    mlp = {"method": "skip_mlp", "layers": [0], "output": "zero"}
    assert "both replace model.layers.0.mlp.gate_proj" in preparing(plain(steps=[first, mlp]))


def test_roles_of_an_mlp_step():
    step = {"method": "skip_mlp", "targets": {"roles": ["up"]}, "output": "zero"}
    assert preparing(plain(steps=[step])) == "steps.0: skip_mlp replaces whole MLPs; give layers, not roles or globs"


def test_a_rank_table_that_is_not_there():
    with pytest.raises(FileNotFoundError) as error:
        prepare(parse_recipe(plain(step={"rank": {"table": "nowhere.json"}})))
    assert str(error.value) == "no rank table 'nowhere.json'; `compress search` writes one"


def test_a_bare_integer_is_a_rank():
    assert parse_recipe(plain(step={"rank": 7})).steps[0].options.rank.rank == 7
    assert "rank" in parsing(plain(step={"rank": True}))


@pytest.mark.parametrize(
    ("layers", "expected"), [([0, "2-4"], [0, 2, 3, 4]), ("1-2", [1, 2]), (3, [3]), ("0,-1", [0, 5]), ("all", list(range(6)))]
)
def test_layers_are_indices_and_ranges(layers, expected):
    job = prepare(parse_recipe(plain(step={"layers": layers, "targets": {"roles": ["q"]}})))
    assert [unit.group.layer for unit in job.variants["compressed"]] == expected


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed", "--set 'seed': write dotted.key=value, such as steps.0.rank.keep=0.6"),
        ("=3", "--set '=3': write dotted.key=value, such as steps.0.rank.keep=0.6"),
        ("steps.4.rank=3", "--set 'steps.4.rank=3': '4' is no index of a list of 1"),
        ("steps.first.rank=3", "--set 'steps.first.rank=3': 'first' is no index of a list of 1"),
    ],
)
def test_overrides_that_lead_nowhere(override, line):
    with pytest.raises(ValueError) as error:
        parse_recipe(plain(), [override])
    assert str(error.value) == line


def test_overrides_are_yaml_and_create_what_is_missing():
    data = plain()
    for override in ("seed=3", "steps.-1.rank={keep: 0.25}", "evaluation.texts.own.text=novella", "model.revision=main"):
        set_value(data, override)
    recipe = parse_recipe({**data, "model": {"name": "novella", "revision": "main"}})
    assert (recipe.seed, recipe.steps[0].options.rank.keep, recipe.model.revision) == (3, 0.25, "main")
    assert recipe.evaluation.texts["own"].text == "novella"


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(FileNotFoundError) as missing:
        load_recipe("nowhere.yaml")
    assert str(missing.value) == "no recipe 'nowhere.yaml'; `compress recipes ls` lists the packaged ones"
    (tmp_path / "r.yaml").write_text("steps: [")
    with pytest.raises(ValueError, match=r"r\.yaml line 2: not valid YAML") as broken:
        load_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(broken.value)


keeps = st.floats(0.01, 1.0)
rules = st.one_of(
    st.integers(1, 64),
    st.fixed_dictionaries({"keep": keeps}),
    st.fixed_dictionaries({"explained_variance": keeps}),
    st.fixed_dictionaries({"budget": keeps, "allocation": st.sampled_from(["uniform", "global"])}),
)
low_rank_steps = st.fixed_dictionaries(
    {"method": st.sampled_from(["feature_space", "weight_svd", "whitened_svd"]), "rank": rules},
    optional={
        "form": st.sampled_from(["plain", "pivoted"]),
        "importance": st.sampled_from(["none", "fisher"]),
        "targets": st.fixed_dictionaries(
            {},
            optional={"roles": st.just("all") | st.lists(st.sampled_from("qkvo")), "layers": st.just("all") | st.just([0, 3])},
        ),
    },
)
recipes = st.fixed_dictionaries(
    {
        "model": st.just("novella") | st.just({"name": "org/name", "revision": "v1"}),
        "calibration": st.just({"text": "a.txt", "length": 8}),
        "output": st.just("runs/x"),
    },
    optional={
        "steps": st.lists(low_rank_steps, min_size=1, max_size=3),
        "seed": st.integers(0, 9),
        "evaluation": st.fixed_dictionaries({}, optional={"texts": st.just({"own": "novella"}), "length": st.integers(2, 512)}),
        "refine": st.fixed_dictionaries({}, optional={"steps": st.integers(1, 500), "lr": st.floats(1e-5, 1.0)}),
        "propagate_error": st.booleans(),
    },
).map(lambda data: {"steps": [{"method": "feature_space", "rank": 3}], **data})


@settings(max_examples=60, deadline=None)
@given(recipes)
def test_to_yaml_loads_as_the_same_recipe(data):
    recipe = parse_recipe(data)
    text = recipe.to_yaml()
    again = parse_recipe(yaml.safe_load(text))
    assert again == recipe
    assert again.to_yaml() == text


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(Recipe.model_fields)), st.data())
def test_a_mistyped_key_is_answered_by_itself(key, choose):
    at = choose.draw(st.integers(0, len(key) - 1))
    typo = key[:at] + key[at + 1 :]
    data = plain()
    data.pop(key, None)
    line = next(line for line in parsing({**data, typo: 1}).splitlines() if "unknown key" in line)
    assert f"unknown key {typo!r}; did you mean {key!r}?" in line


def test_checking_reads_no_weight(tmp_path, monkeypatch):
    folder = tiny_folder(tmp_path / "model", "llama")
    monkeypatch.setattr(Shards, "tensor", lambda *_: pytest.fail("a weight was read"))
    monkeypatch.setattr(Shards, "under", lambda *_: pytest.fail("weights were read"))
    assert len(prepare(parse_recipe(plain(model=str(folder)))).variants["compressed"]) == 14
