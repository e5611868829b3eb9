"""What every engine's front promises: values, units, certificates, determinism, and words for inputs that cannot be fitted."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import sympy
from pydantic import ValidationError
from pyoperon.sklearn import SymbolicRegressor

from compress.regression.engines import operon, sparse
from compress.regression.front import Candidate, Front, choose
from compress.regression.options import EngineOptions
from compress.regression.regress import regress, regress_each
from compress.regression.scoring import Judge, Rows, Scaling
from compress.symbolic.compile import compile_program
from compress.symbolic.evaluate import evaluate_numpy
from compress.symbolic.expression import symbols

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(600, 3))
TARGET = 0.7 * Z[:, 0] * Z[:, 1] - 1.3 * Z[:, 2] + 0.2
SPARSE = EngineOptions(name="sparse", terms=8)
OPERON = EngineOptions(evaluations=6000, population=300, terms=0, max_length=20)


def evaluate(candidate: Candidate, z: np.ndarray) -> np.ndarray:
    return evaluate_numpy(compile_program([candidate.tree], z.shape[1], len(candidate.constants)), z, candidate.constants)[:, 0]


def best(front: Front) -> Candidate:
    return front.candidates[choose(front)]


def text(front: Front) -> str:
    return json.dumps(front.to_json(), allow_nan=False)


def test_sparse_finds_exactly_the_terms_that_are_there():
    found = best(regress(Z, TARGET, SPARSE))
    assert found.source == "sparse"
    assert found.held_out_loss < 1e-20
    terms = sympy.expand(found.expression(symbols(3))).as_coefficients_dict()
    z0, z1, z2 = symbols(3)
    assert {t: pytest.approx(float(c), abs=1e-9) for t, c in terms.items()} == {z0 * z1: 0.7, z2: -1.3, sympy.S.One: 0.2}


def test_sparse_finds_elementary_functions():
    options = EngineOptions(name="sparse", terms=4, operators=("mul", "sin", "tanh", "exp"))
    found = best(regress(Z, 2 * np.tanh(Z[:, 1]) - np.exp(Z[:, 0]), options))
    assert found.held_out_loss < 1e-20
    assert {"tanh", "exp"} <= {str(f.func) for f in found.expression(symbols(3)).atoms(sympy.Function)}


def test_forward_selection_is_greedy_least_squares():
    columns = RNG.normal(size=(80, 12)) + RNG.normal(size=(80, 1))  # correlated
    columns = (columns - columns.mean(axis=0)) / np.linalg.norm(columns - columns.mean(axis=0), axis=0)
    y = columns[:, :4] @ [1.0, -2.0, 0.5, 3.0] + 0.1 * RNG.normal(size=80)

    def error(chosen: list[int]) -> float:
        return float(np.sum((y - columns[:, chosen] @ np.linalg.lstsq(columns[:, chosen], y, rcond=None)[0]) ** 2))

    expected: list[int] = []
    for _ in range(6):  # the slow way: refit with every candidate at every step
        expected.append(min((j for j in range(12) if j not in expected), key=lambda j: error([*expected, j])))
    order = sparse.forward_selection(columns.T @ columns, columns.T @ y, 6, np.ones(12, bool))
    assert order == expected


def test_operon_finds_a_planted_formula():
    y = 0.7 * Z[:, 0] * Z[:, 1] - np.sin(1.5 * Z[:, 2])
    options = OPERON.model_copy(update={"operators": ("add", "sub", "mul", "sin"), "evaluations": 12_000})
    found = best(regress(Z, y, options))
    assert found.source == "operon"
    assert found.held_out_loss < 1e-3
    assert np.mean((evaluate(found, Z) - y) ** 2) < 1e-3


def test_an_operon_tree_is_read_with_its_own_values():
    names = sorted(operon.OPERATORS - {"pow"})  # pow of negative bases is NaN in most trees
    regressor = SymbolicRegressor(
        allowed_symbols=",".join([*names, "pow", "constant", "variable"]),
        objectives=["r2", "length"],
        max_evaluations=3000,
        population_size=300,
        max_length=25,
        uncertainty=[1.0],
        random_state=3,
    )
    regressor.fit(Z, np.abs(TARGET))
    used, compared = set(), 0
    for individual in [*regressor.individuals_[:200]]:
        tree = individual.Genotype
        own = regressor.evaluate_model(tree, Z)
        expression, constants = operon.read_tree(tree, list(regressor.variables_))
        ours = evaluate_numpy(compile_program([expression], 3, len(constants)), Z, constants)[:, 0]
        usable = np.isfinite(own) & np.isfinite(ours) & (np.abs(own) < 1e4)
        if usable.mean() > 0.9:
            np.testing.assert_allclose(ours[usable], own[usable], rtol=0.02, atol=0.02)
            used |= {node.Type.name.lower() for node in tree.Nodes}
            compared += 1
    assert compared > 100
    assert len(used) > 15


@pytest.mark.parametrize("options", [SPARSE, OPERON], ids=["sparse", "operon"])
def test_the_same_seed_and_budget_give_the_same_expressions(options):
    y = np.column_stack([TARGET, Z[:, 0] ** 2, Z[:, 1] - Z[:, 2]])
    first = regress_each(Z, y, options, seed=5)
    again = regress_each(Z, y, options.model_copy(update={"threads": 3}), seed=5)
    assert [*map(text, first)] == [*map(text, again)]


def test_another_seed_searches_elsewhere():
    y = np.sin(3 * Z[:, 0]) * Z[:, 1] + np.abs(Z[:, 2])
    assert text(regress(Z, y, OPERON, seed=1)) != text(regress(Z, y, OPERON, seed=2))


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("options", [SPARSE, OPERON], ids=["sparse", "operon"])
def test_a_front_rises_in_complexity_falls_in_loss_and_its_losses_are_those_of_its_expressions(options, clamp):
    y = TARGET + 0.3 * np.abs(Z[:, 0])
    front = regress(Z[:480], y[:480], options, held_out=(Z[480:], y[480:]), clamp=clamp)
    for simple, accurate in itertools.pairwise(front.candidates):
        assert simple.complexity < accurate.complexity
        assert simple.train_loss > accurate.train_loss
    assert (front.candidates[0].complexity, front.candidates[0].train_loss) == (1, pytest.approx(1.0))
    low, high = (Z[:480].min(axis=0), Z[:480].max(axis=0)) if clamp else (-np.inf, np.inf)
    for candidate in front.candidates:
        f = sympy.lambdify(symbols(3), candidate.expression(symbols(3)), "numpy")  # the oracle
        for rows, loss in ((slice(480), candidate.train_loss), (slice(480, None), candidate.held_out_loss)):
            error = np.mean((f(*Z[rows].clip(low, high).T) - y[rows]) ** 2) / y[rows].var()
            assert loss == pytest.approx(error, rel=1e-9, abs=1e-15)
    assert Front.from_json(json.loads(text(front))) == front


def test_units_do_not_matter():
    scale, shift = np.array([1e-4, 1e3, 1.0]), np.array([5.0, -1e5, 0.0])
    z = Z * scale + shift
    front = regress(z, 1e6 * TARGET + 1e8, OPERON)
    plain = regress(Z, TARGET, OPERON)
    assert best(front).held_out_loss == pytest.approx(best(plain).held_out_loss, abs=0.02)
    predicted = evaluate(best(front), z)
    assert np.mean((predicted - (1e6 * TARGET + 1e8)) ** 2) / (1e12 * TARGET.var()) < 0.05


@pytest.mark.parametrize("name", ["sparse", "operon"])
def test_certified_candidates_are_finite_all_over_the_box(name):
    operators = {"sparse": ("mul", "inv", "log", "sqrt", "exp"), "operon": ("add", "mul", "div", "log", "sqrt", "exp")}[name]
    options = OPERON.model_copy(update={"name": name, "operators": operators, "terms": 6, "evaluations": 4000})
    y = 1 / (Z[:, 0] ** 2 + 0.05) + np.log(np.abs(Z[:, 1]) + 1e-3)
    front = regress(Z[:480], y[:480], options, held_out=(Z[480:], y[480:]))
    low, high = Z[:480].min(axis=0), Z[:480].max(axis=0)
    corners = low + np.array(list(itertools.product((0, 0.5, 1), repeat=3))) * (high - low)
    anywhere = np.concatenate(
        [corners, np.random.default_rng(1).uniform(low, high, (2000, 3)), np.zeros((1, 3)).clip(low, high)]
    )
    for candidate in front.candidates:
        assert np.isfinite(evaluate(candidate, anywhere)).all()
    if name == "operon":
        assert any("may not be finite" in note for note in front.notes)


def test_without_the_certificate_singular_expressions_are_kept():
    options = OPERON.model_copy(update={"operators": ("add", "mul", "div"), "certify": False})
    y = 1 / (Z[:, 0] + 0.001)
    front = regress(Z, y, options)
    assert not any("may not be finite" in note for note in front.notes)
    assert best(front).held_out_loss is not None


def test_held_out_rows_decide_against_overfitting():
    rng = np.random.default_rng(4)
    z = rng.normal(size=(60, 6))
    y = z[:, 0] + rng.normal(size=60)  # 27 terms of library for 45 rows of mostly noise
    front = regress(z[:45], y[:45], EngineOptions(name="sparse", terms=20), held_out=(z[45:], y[45:]))
    most = front.candidates[-1]
    assert most.train_loss < best(front).train_loss
    assert most.held_out_loss > best(front).held_out_loss


def test_simplifying_never_makes_an_expression_larger():
    judge = Judge(Rows(Z, TARGET[:, None], Z, TARGET[:, None]), 0, Scaling(np.zeros(3), np.ones(3), 0.0, 1.0), True, {})
    variables = [["var", i] for i in range(3)]
    common = judge.candidate(["mul", ["param", 0], ["add", *variables]], [0.5], "test")  # sympy would write 0.5 three times
    assert common is not None
    assert common.complexity == 7
    merged = judge.candidate(
        ["add", ["mul", ["param", 0], variables[0]], ["mul", ["param", 1], variables[0]]], [0.5, 0.25], "test"
    )
    assert merged is not None
    assert (merged.complexity, merged.constants) == (3, (0.75,))


def candidate(size: int, loss: float, held: float) -> Candidate:
    return Candidate(["param", 0], (0.0,), size, loss, held, "test")


def test_the_rules_pick_what_they_say():
    front = Front(
        tuple(candidate(*row) for row in ((1, 1.0, 1.0), (5, 0.3, 0.31), (9, 0.22, 0.2015), (20, 0.2, 0.2), (40, 0.1, 0.5)))
    )
    assert choose(front, "held_out") == 2  # within 1 % of 0.2
    assert choose(front, "knee") == 1
    assert choose(front, 10) == 2
    assert choose(front, 5) == 1
    with pytest.raises(ValueError, match="no candidate of complexity 0 or less; there are 1, 5, 9, 20, 40"):
        choose(front, 0)


BAD = {
    "nan input": (np.where(np.arange(3) == 1, np.nan, Z), TARGET, "input 1 has NaN"),
    "inf output": (Z, np.where(np.arange(600) == 7, np.inf, TARGET), "output 0 has NaN or infinite"),
    "constant input": (np.where(np.arange(3) == 2, 4.0, Z), TARGET, "input 2 is constant"),
    "few rows": (Z[:4], TARGET[:4], "4 training rows for 3 inputs; give at least 5"),
    "lengths": (Z, TARGET[:-1], "same n"),
    "one axis": (Z[:, 0], TARGET, "expected z"),
}


@pytest.mark.parametrize(("z", "y", "message"), BAD.values(), ids=BAD.keys())
def test_rows_that_cannot_be_fitted_are_named(z, y, message):
    with pytest.raises(ValueError, match=message):
        regress(z, y, SPARSE, held_out=(Z[:10], TARGET[:10]))


def test_a_constant_output_is_a_constant():
    front = regress_each(Z, np.column_stack([np.full(600, 2.5), TARGET]), SPARSE)[0]
    assert [(c.tree, c.constants, c.train_loss) for c in front.candidates] == [(["param", 0], (2.5,), 0.0)]
    assert front.notes == ("output 0 is constant",)


def test_without_pyoperon_sparse_regression_steps_in_and_says_so(monkeypatch):
    monkeypatch.setattr(operon, "missing", lambda: "pyoperon is not installed")
    with pytest.warns(UserWarning, match="sparse regression was used instead"):
        front = regress(Z, TARGET, EngineOptions(operators=("add", "mul", "div", "exp")))
    assert best(front).source == "sparse"
    assert "sparse regression was used instead" in front.notes[0]


def test_operon_tries_the_sparse_path_first():
    front = regress(Z, TARGET, EngineOptions(evaluations=600, population=50))
    assert best(front).source == "sparse"
    assert best(front).held_out_loss < 1e-20


def test_a_tiny_budget_is_noted_and_a_time_limit_holds():
    assert any("evaluations are few" in note for note in regress(Z, TARGET, EngineOptions(evaluations=100, terms=0)).notes)
    assert regress(Z[:100], TARGET[:100], EngineOptions(evaluations=None, seconds=0.01, population=20, terms=0)).candidates


def test_wide_inputs_get_products_of_the_leading_ones_only():
    z = RNG.normal(size=(200, 90))
    front = regress(z, z[:, 0] * z[:, 1], SPARSE)
    assert any("products of the first" in note for note in front.notes)
    assert best(front).held_out_loss < 1e-20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operators": ("add", "sinn")}, "operon has no operator 'sinn'; did you mean 'sin'"),
        ({"operators": ("fmin",)}, "operon has no operator 'fmin'"),
        ({"name": "pysr", "operators": ("aq",)}, "pysr has no operator 'aq'"),
        ({"name": "sparse", "operators": ("div",)}, "sparse has no operator 'div'"),
        ({"evaluations": None}, "give the search a budget"),
        ({"iterations": 5}, "`iterations` are PySR's"),
        ({"name": "sparse", "terms": 0}, "needs `terms`"),
        ({"name": "gplearn"}, "operon"),
        ({"budget": 5}, "Extra inputs"),
    ],
)
def test_engine_options_are_checked_in_words(options, message):
    with pytest.raises(ValidationError, match=message):
        EngineOptions(**options)
