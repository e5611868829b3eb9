"""Trees carry an expression's value, survive JSON, and refuse what is not one; nothing hostile takes long."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import N_CONSTANTS, N_INPUTS, constants, trees

from compress.plan import ModuleSpec
from compress.symbolic.expression import check_tree, complexity, from_tree, join, symbols, to_latex, to_text, to_tree
from compress.symbolic.operations import OPERATIONS, apply

Z = symbols(N_INPUTS)
x, y, z = Z


def value(expression: sympy.Expr, at: tuple[float, ...]) -> float:
    return float(sympy.re(expression.evalf(30, subs=dict(zip(Z, map(sympy.Float, at), strict=True)))))


@settings(max_examples=60, deadline=None)
@given(trees(8), constants, st.tuples(*[st.floats(-2, 2).map(lambda v: round(v, 2) + 0.003)] * N_INPUTS))
def test_an_expression_keeps_its_value_through_tree_json_and_back(tree, numbers, at):
    expression = from_tree(tree, Z, numbers, evaluate=True)
    again, found = to_tree(expression, Z)
    back = from_tree(json.loads(json.dumps(again)), Z, json.loads(json.dumps(found)))
    assert value(back, at) == pytest.approx(value(expression, at), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    "expression",
    [
        2 * x + sympy.Float(0.25) * sympy.sin(y) - 1,
        x / y**2 + sympy.sqrt(z**2 + 1),
        sympy.exp(-(x**2)) * sympy.Max(x, y, z) - sympy.Rational(2, 3),
        sympy.Piecewise((x, x < y), (y, sympy.And(x > 1, y > 0)), (z, True)),
        sympy.Mod(x, 3) + sympy.Abs(y) * sympy.sign(z) - sympy.floor(x) * sympy.ceiling(y),
        sympy.cot(x) + sympy.sech(y) + sympy.log(x, 2),
    ],
    ids=str,
)
def test_value_at_a_point_is_unchanged(expression):
    tree, numbers = to_tree(expression, Z)
    assert value(from_tree(tree, Z, numbers), (0.7, 1.9, -2.4)) == pytest.approx(value(expression, (0.7, 1.9, -2.4)), rel=1e-14)


def test_structure_comes_back_where_sympy_has_the_same_nodes():
    expression = sympy.Float(0.25) * x**3 * sympy.sin(y) - z / 2 + sympy.Max(x, y)
    tree, numbers = to_tree(expression, Z)
    assert from_tree(tree, Z, numbers) == expression


def test_constants_are_parameters_and_exponents_are_not():
    tree, numbers = to_tree(sympy.Float(0.5) * x ** sympy.Float(2.0) + sympy.pi * y, Z)
    assert numbers == pytest.approx([0.5, math.pi])
    assert ["pow", ["var", 0], ["int", 2]] in tree[1]


def test_equal_constants_share_a_parameter_and_constant_parts_become_one():
    tree, numbers = to_tree(sympy.Float(0.5) * (x + y) + sympy.log(2) ** 2, Z)
    assert sorted(numbers) == pytest.approx([math.log(2) ** 2, 0.5])
    assert complexity(tree) == 9


def test_a_comparison_with_nan_is_refused():
    with pytest.raises(ValueError, match="where: Invalid NaN comparison"):
        from_tree(
            [
                "where",
                ["lt", ["where", ["lt", ["var", 0], ["int", 0]], ["nan"], ["int", 1]], ["int", 2]],
                ["int", 0],
                ["int", 1],
            ],
            Z,
            [],
        )


def test_a_piecewise_without_default_is_nan_outside():
    tree, _ = to_tree(sympy.Piecewise((x, x < y)), Z)
    assert tree == ["where", ["lt", ["var", 0], ["var", 1]], ["var", 0], ["nan"]]
    assert from_tree(tree, Z, []).subs({x: 2, y: 1}) is sympy.nan


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (sympy.gamma(x), r"gamma\(…\) cannot be exported"),
        (sympy.besselj(0, x), "besselj"),
        (sympy.Symbol("w") + x, "the symbol w cannot be exported"),
        (x * sympy.log(-1), "not a finite real number"),
        (x + sympy.oo, "not a finite real number"),
        (x + sympy.Float("1e999"), "not a finite real number"),
    ],
    ids=str,
)
def test_what_has_no_operator_or_no_real_value_is_refused(expression, message):
    with pytest.raises(ValueError, match=message):
        to_tree(expression, Z)


V, P = ["var", 0], ["param", 0]


def deep(depth: int) -> list:
    tree = V
    for _ in range(depth):
        tree = ["sin", tree]
    return tree


HOSTILE = {
    "unknown": (["sinn", V], "no operation 'sinn'; did you mean 'sin'"),
    "unsupported": (["gamma", V], "no operation 'gamma'"),
    "dunder": (["__import__", V], "no operation"),
    "long name": (["a" * 10**6, V], "no operation 'aaa"),
    "composed": (["logabs", V], r"not a primitive; write it as \['log', \['abs'"),
    "a million arguments": (["add", *[V] * 10**6], "more than 10000 nodes"),
    "a million nodes": (["add", *[["sin", V]] * 9000, ["mul", *[V] * 9000]], "more than 10000 nodes"),
    "deep": (deep(10**5), "nested deeper than 100"),
    "arity": (["sin", V, V], "'sin' takes 1 argument"),
    "too few": (["div", V], "'div' takes 2 argument"),
    "no arguments": (["add"], "at least 1 argument"),
    "variable": (["var", 3], "'var' 3 is out of range; there are 3"),
    "negative variable": (["var", -1], "out of range"),
    "bool index": (["var", True], "takes 1 integer"),
    "parameter": (["param", 1], "there are 1, from 0"),
    "huge integer": (["int", 10**5000], "integers go up to 2"),
    "huge index": (["var", 10**5000], "integers go up to 2"),
    "nan literal": (["int", math.nan], "takes 1 integer"),
    "infinite literal": (["int", math.inf], "takes 1 integer"),
    "zero denominator": (["rational", 1, 0], "positive denominator"),
    "number": (3.0, "expected a list"),
    "text": ("sin(z0)", "expected a list"),
    "none": (None, "expected a list"),
    "empty": ([], "expected a list"),
    "dict": ({"add": 1}, "expected a list"),
    "list as name": ([["sin"], V], "expected a list"),
    "condition as number": (["add", ["lt", V, V], V], "'lt' is bool where a real value is needed"),
    "number as condition": (["where", V, V, V], "'var' is real where a bool value is needed"),
    "condition as value": (["lt", V, V], "'lt' is bool"),
}


@pytest.mark.parametrize(("tree", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_trees_are_refused_in_words_and_at_once(tree, message):
    started = time.perf_counter()
    with pytest.raises(ValueError, match=message):
        check_tree(tree, 3, 1)
    assert time.perf_counter() - started < 1


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.sampled_from(["add", "var", "where", "int"]),
            st.text(max_size=3),
        ),
        lambda child: st.lists(child, max_size=4),
        max_leaves=12,
    )
)
def test_any_json_value_is_a_tree_or_a_value_error(tree):
    try:
        check_tree(tree, N_INPUTS, N_CONSTANTS)
    except ValueError:
        return
    from_tree(tree, Z, [1.0] * N_CONSTANTS)  # what passes the check can be read


BOMBS = {
    "exp tower": ["add", V, ["mul", ["floor", ["exp", ["exp", ["exp", ["exp", ["param", 0]]]]]], V]],
    "power tower": ["add", V, ["pow", ["pow", ["pow", ["int", 2**53], ["int", 2**53]], ["int", 2**53]], ["int", 2**53]]],
    "cancelling": ["exp", ["exp", ["exp", ["add", V, ["neg", V], P]]]],
    "compare": ["where", ["lt", ["exp", ["exp", ["exp", P]]], ["exp", ["exp", ["exp", ["int", 99]]]]], V, V],
}


@pytest.mark.parametrize("tree", BOMBS.values(), ids=BOMBS.keys())
def test_reading_and_printing_evaluates_nothing(tree):
    started = time.perf_counter()
    assert "z0" in to_text(tree, [1e9], ["z0"])
    assert "z_{0}" in to_latex(tree, [1e9], ["z_0"])
    assert time.perf_counter() - started < 1


def test_the_deepest_tree_allowed_prints_and_fits_a_plan():
    tree = deep(99)
    check_tree(tree, 1, 0)
    assert to_text(tree, [], ["z0"]).count("sin") == 99
    assert to_latex(tree, [], ["z0"]).count("sin") == 99
    spec = ModuleSpec(module="m", kind="symbolic_mlp", options={"expressions": [tree]})
    assert json.loads(spec.model_dump_json())["options"]["expressions"] == [tree]


def test_constants_must_be_finite():
    with pytest.raises(ValueError, match="finite"):
        from_tree(P, Z, [math.nan])


@pytest.mark.parametrize("name", OPERATIONS)
def test_apply_checks_the_arity_of_every_row(name):
    row = OPERATIONS[name]
    with pytest.raises(ValueError, match=f"'{name}' takes {row.arity} argument"):
        apply(name, *[V] * (row.least - 1))
    if row.most is not None:
        with pytest.raises(ValueError, match="takes"):
            apply(name, *[V] * (row.most + 1))


def test_join_gives_each_tree_its_own_constants():
    joined, numbers = join([(["mul", P, V], [2.0]), (["add", P, ["param", 1]], [3.0, 4.0])])
    assert joined == [["mul", ["param", 0], V], ["add", ["param", 1], ["param", 2]]]
    assert numbers == [2.0, 3.0, 4.0]


def test_text_is_readable():
    tree, numbers = to_tree(sympy.Float(0.123456) * x**2 / y - sympy.sqrt(z + 1), Z)
    assert to_text(tree, numbers, ["a", "b", "c"]) == "-sqrt(1 + c) + 0.1235*a**2/b"
    assert to_latex(tree, numbers, ["a", "b", "c"]) == r"- \sqrt{1 + c} + \frac{0.1235 a^{2}}{b}"


def test_the_same_tree_in_every_process():
    code = (
        "import sympy, json; from compress.symbolic.expression import symbols, to_tree\n"
        "a, b, c = symbols(3)\n"
        "e = sympy.Max(a, b, c) + sympy.Float(.3) * sympy.sin(a * b) / c\n"
        "e += sympy.Piecewise((a, sympy.And(a > b, b > c)), (c, True))\n"
        "print(json.dumps(to_tree(e, (a, b, c))))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True, text=True
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout != ""
