"""One program, the same numbers in sympy, numpy, torch (interpreted, as source) and ONNX Runtime."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import N_CONSTANTS, N_INPUTS, constants, example, points, trees, value

from compress.nn.symbolic import ExpressionProgram
from compress.symbolic.compile import compile_program, program_from_json, program_to_json
from compress.symbolic.evaluate import evaluate_numpy
from compress.symbolic.expression import from_tree, symbols
from compress.symbolic.operations import OPERATIONS, PRIMITIVES, apply
from compress.symbolic.program import Program
from compress.symbolic.torch_source import torch_source
from exporters.onnx.program import onnx_nodes

X, Y, Z = (["var", i] for i in range(3))
C0 = ["param", 0]


def interpreter(program: Program, numbers: list[float]) -> ExpressionProgram:
    module = ExpressionProgram(program_to_json(program))
    module.load_state_dict({"constants": torch.tensor(numbers, dtype=torch.float32)})
    return module.requires_grad_(False)


def run_torch(program: Program, z: np.ndarray, numbers: list[float]) -> np.ndarray:
    return interpreter(program, numbers)(torch.tensor(z, dtype=torch.float32)).numpy()


def run_straight(program: Program, z: np.ndarray, numbers: list[float]) -> np.ndarray:
    return interpreter(program, numbers).straight(torch.tensor(z, dtype=torch.float32)).numpy()


def run_source(program: Program, z: np.ndarray, numbers: list[float], folder: Path) -> np.ndarray:
    body = "\n    ".join(torch_source(program))
    file = folder / "generated.py"
    file.write_text(f"import torch\n\n\ndef f(z, constants):\n    {body}\n    return y\n")
    spec = importlib.util.spec_from_file_location("generated", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.f(torch.tensor(z, dtype=torch.float32), torch.tensor(numbers, dtype=torch.float32)).numpy()


def run_onnx(program: Program, z: np.ndarray, numbers: list[float]) -> np.ndarray:
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        onnx_nodes(program, "z", "constants", "y", prefix="f_"),
        "f",
        [tensor("z", onnx.TensorProto.FLOAT, ["batch", "tokens", program.n_inputs])],
        [tensor("y", onnx.TensorProto.FLOAT, ["batch", "tokens", len(program.outputs)])],
        [onnx.numpy_helper.from_array(np.asarray(numbers, np.float32), "constants")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"z": np.asarray(z, np.float32)[None]})[0][0]


BACKENDS = {
    "numpy": lambda p, z, c, _: evaluate_numpy(p, z, c),
    "torch": lambda p, z, c, _: run_torch(p, z, c),
    "straight": lambda p, z, c, _: run_straight(p, z, c),
    "source": run_source,
    "onnx": lambda p, z, c, _: run_onnx(p, z, c),
}


def apart(name: str) -> tuple[Any, bool]:
    """What can share a program: operations with the same points; those with conditions by themselves, being not batched."""
    return points(name), "bool" in (OPERATIONS[name].gives, *OPERATIONS[name].takes)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every operation at its points on every backend: one program per set of points, all its operations at once."""
    out: dict[str, dict[str, Any]] = {}
    for (where, conditions), names in itertools.groupby(sorted(OPERATIONS, key=apart), key=apart):
        listed = list(names)
        program = compile_program([example(name) for name in listed], 3, 0)
        assert (program_to_json(program)["steps"] is None) == conditions
        results = {b: run(program, np.array(where), [], tmp_path_factory.mktemp("source")) for b, run in BACKENDS.items()}
        for i, name in enumerate(listed):
            out[name] = {backend: values[:, i] for backend, values in results.items()}
    return out


def sympy_value(name: str, at: tuple[float, ...]) -> float:
    variables = symbols(3)
    value = from_tree(example(name), variables, []).subs(dict(zip(variables, map(sympy.Rational, at), strict=True))).evalf(30)
    assert value.is_real, f"{name} is not real at {at}: a wrong test point"
    return float(value)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_operation_agrees_with_thirty_digits(name, backend, table):
    expected = [sympy_value(name, at) for at in points(name)]
    tolerance = 1e-12 if backend == "numpy" else 1e-5
    np.testing.assert_allclose(table[name][backend], expected, rtol=tolerance, atol=tolerance)


OUTSIDE = ("sqrt", "log", "asin", "acos", "acosh", "atanh", "reciprocal", "div", "pow", "mod", "log1p", "inv", "coth")


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside_its_domain_torch_equals_onnx_and_one_by_one_it_equals_numpy(name):
    z = np.array([[-3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-2.5, 0.5, 0.0]])
    program = compile_program([example(name)], 3, 0)
    exact = evaluate_numpy(program, z, [])
    assert not np.isfinite(exact).all()
    np.testing.assert_allclose(run_straight(program, z, []), exact, rtol=1e-4)
    np.testing.assert_allclose(run_onnx(program, z, []), run_torch(program, z, []), rtol=1e-4)


def test_an_overflow_stays_in_its_own_expression():
    program = compile_program([["exp", X], ["mul", ["int", 3], ["sin", Y]], apply("sigmoid", X)], 2, 0)
    z = np.array([[-200.0, 1.0], [200.0, 1.0]])
    for result in (run_torch(program, z, []), run_onnx(program, z, [])):
        np.testing.assert_allclose(result[:, 1:], [[3 * math.sin(1), 0], [3 * math.sin(1), 1]], rtol=1e-5, atol=1e-30)
        assert result[1, 0] > 1e38


def test_a_wide_program_is_a_dozen_steps_and_a_few_dozen_nodes():
    rng = np.random.default_rng(0)
    trees = []
    for _ in range(8):
        pairs = rng.integers(0, 16, (40, 2)).tolist()
        trees.append(["add", *[["mul", ["param", int(rng.integers(50))], ["var", i], ["var", j]] for i, j in pairs]])
    program = compile_program(trees, 16, 50)
    assert len(program.instructions) > 500
    assert len(program_to_json(program)["steps"]["levels"]) == 1
    assert len(onnx_nodes(program, "z", "constants", "y")) < 25
    z, numbers = rng.normal(size=(5, 16)), rng.normal(size=50).tolist()
    exact = evaluate_numpy(program, z, numbers)
    for run in (run_torch, run_straight, run_onnx):
        np.testing.assert_allclose(run(program, z, numbers), exact, rtol=1e-4, atol=1e-4)


def test_what_no_condition_covers_is_nan_everywhere(tmp_path):
    program = compile_program([["where", ["lt", X, Y], X, ["nan"]]], 2, 0)
    z = np.array([[1.0, 2.0], [2.0, 1.0]])
    for run in BACKENDS.values():
        np.testing.assert_array_equal(run(program, z, [], tmp_path), [[1.0], [np.nan]])


def test_each_primitive_is_a_torch_function_and_an_onnx_operator():
    for name, row in PRIMITIVES.items():
        assert callable(getattr(torch, name))
        assert onnx.defs.get_schema(row.onnx).name == row.onnx
        assert row.bounds is not None


AT = ((0.37, -1.21, 1.84), (1.5, 0.25, -0.75))


@settings(max_examples=80, deadline=None)
@given(st.lists(trees(), min_size=1, max_size=4), constants)
def test_random_programs_have_the_values_of_their_trees(forest, numbers):
    program = compile_program(forest, N_INPUTS, N_CONSTANTS)
    expected = [[value(tree, at, numbers) for tree in forest] for at in AT]
    np.testing.assert_allclose(evaluate_numpy(program, np.array(AT), numbers), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(trees(conditions=False), min_size=1, max_size=3), constants)
def test_random_programs_survive_json_and_batching(forest, numbers):
    program = compile_program(forest, N_INPUTS, N_CONSTANTS)
    assert program_from_json(json.loads(json.dumps(program_to_json(program), allow_nan=False))) == program
    np.testing.assert_allclose(
        run_torch(program, np.array(AT), numbers), run_straight(program, np.array(AT), numbers), rtol=1e-4, atol=1e-4
    )


def test_equal_parts_are_computed_once_whatever_their_order():
    shared = ["sin", ["mul", X, Y]]
    program = compile_program([["add", shared, Z], ["mul", ["sin", ["mul", Y, X]], Z], ["add", Z, shared]], 3, 0)
    assert [name for name, _ in program.instructions] == ["mul", "sin", "add", "mul"]
    assert program.outputs[0] == program.outputs[2]


def operations(tree: Any) -> list[str]:
    return [name for name, _ in compile_program([tree], 3, 1).instructions]


POWERS = {
    ("int", 0): [],
    ("int", 1): [],
    ("int", 2): ["mul"],
    ("int", 3): ["mul", "mul"],
    ("int", 4): ["mul", "mul"],
    ("int", -1): ["reciprocal"],
    ("int", -2): ["mul", "reciprocal"],
    ("int", 8): ["mul", "mul", "mul"],
    ("int", 9): ["pow"],
    ("rational", 1, 2): ["sqrt"],
    ("rational", -1, 2): ["sqrt", "reciprocal"],
    ("rational", 3, 2): ["sqrt", "mul"],
    ("rational", 1, 3): ["pow"],
}


@pytest.mark.parametrize(("exponent", "expected"), POWERS.items(), ids=str)
def test_small_powers_are_products_roots_and_reciprocals(exponent, expected):
    assert operations(["pow", X, list(exponent)]) == expected
    value = exponent[1] / (exponent[2] if len(exponent) == 3 else 1)
    program = compile_program([["pow", X, list(exponent)]], 1, 0)
    np.testing.assert_allclose(evaluate_numpy(program, np.array([[0.7]]), [])[0], 0.7**value, rtol=1e-14)


def test_signs_and_fractions_cost_one_operation():
    assert operations(["add", X, ["mul", ["int", -1], Y]]) == ["sub"]
    assert operations(["mul", X, ["pow", Y, ["int", -1]]]) == ["div"]
    assert operations(["neg", ["sub", X, Y]]) == ["sub"]
    assert operations(["mul", ["neg", X], ["neg", Y]]) == ["mul"]
    quotient = ["mul", ["reciprocal", Y], X, ["reciprocal", Z]]
    assert operations(quotient) == ["div", "div"]
    assert evaluate_numpy(compile_program([quotient], 3, 0), np.array([[3.0, 4.0, 5.0]]), []) == pytest.approx(3 / 4 / 5)
    assert operations(["add", X, ["int", 0]]) == []


def test_a_quotient_does_not_overflow_where_its_value_is_small():
    square = compile_program([["pow", ["div", X, Y], ["int", 2]], ["mul", ["div", X, Y], ["div", X, Y]]], 2, 0)
    assert run_torch(square, np.array([[1e30, 1e30]]), []).tolist() == [[1.0, 1.0]]


def test_expressions_without_a_variable_have_a_value_for_every_token(tmp_path):
    program = compile_program([C0, ["int", 2], X, ["mul", C0, C0]], 1, 1)
    for run in BACKENDS.values():
        np.testing.assert_allclose(run(program, np.array([[5.0], [6.0]]), [3.0], tmp_path), [[3, 2, 5, 9], [3, 2, 6, 9]])


@pytest.mark.parametrize(
    "part", [["reciprocal", ["int", 0]], ["log", ["int", 0]], ["exp", ["exp", ["int", 99]]], ["sqrt", ["int", -1]]]
)
def test_literal_parts_without_a_value_are_refused(part):
    with pytest.raises(ValueError, match=r"expression 1: a part of the expression .* no finite value"):
        compile_program([X, ["add", X, part]], 1, 0)


TAMPERED = {
    "unknown": {"instructions": [["load", [0]]]},
    "composed": {"instructions": [["logabs", [0]]]},
    "future register": {"instructions": [["sin", [1]]]},
    "negative register": {"instructions": [["sin", [-1]]]},
    "arity": {"instructions": [["sin", [0, 0]]]},
    "condition": {"instructions": [["lt", [0, 0]], ["sin", [1]]], "outputs": [2]},
    "output": {"outputs": [7]},
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED.keys())
def test_a_tampered_program_is_refused(change):
    program = program_to_json(compile_program([["sin", X]], 1, 0))
    program_from_json(program)
    with pytest.raises(ValueError, match="register"):
        program_from_json(program | change)


def test_source_is_straight_line_code_with_named_shared_parts():
    shared = ["sin", ["mul", X, Y]]
    lines = torch_source(compile_program([["add", shared, ["mul", C0, shared]], ["pow", Z, ["int", 2]]], 3, 1))
    assert lines == [
        "z0, z1, z2 = z.split(1, dim=-1)",
        "t0 = torch.sin(z0 * z1)",
        "y = torch.cat([t0 + constants[0] * t0, z2 * z2], dim=-1)",
    ]
