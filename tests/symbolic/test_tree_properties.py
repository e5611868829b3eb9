"""What holds of every tree: one damaged node is refused, sizes add up, and every other form of it has the same value."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import N_CONSTANTS, N_INPUTS, constants, trees, value

from compress.regression.features import renumbered, variables
from compress.symbolic.activation import with_input
from compress.symbolic.compile import compile_program
from compress.symbolic.evaluate import evaluate_numpy
from compress.symbolic.expression import check_tree, complexity, from_tree, join, symbols, to_tree
from compress.symbolic.operations import LEAVES
from compress.symbolic.program import Program
from compress.symbolic.schedule import schedule

points = st.tuples(*[st.floats(-2, 2).map(lambda v: round(v, 2) + 0.003)] * N_INPUTS)


def nodes(tree: Any) -> list[Any]:
    """Every node, the root first."""
    return [tree] if tree[0] in LEAVES else [tree, *(n for child in tree[1:] for n in nodes(child))]


def replaced(node: Any, new: Any) -> None:
    node[:] = new


# What makes a node invalid wherever it stands.
DAMAGES = {
    "another name": lambda node: replaced(node, ["sinn", *node[1:]]),
    "no name": lambda node: replaced(node, node[1:]),
    "no arguments": lambda node: replaced(node, [node[0] if node[0] != "nan" else "add"]),
    "name that is no text": lambda node: replaced(node, [node[:1], *node[1:]]),
    "number in the place of a tree": lambda node: replaced(node, ["neg", 1.5]),
    "tuple in the place of a tree": lambda node: replaced(node, ["neg", ("var", 0)]),
    "variable that is not there": lambda node: replaced(node, ["var", N_INPUTS]),
    "constant that is not there": lambda node: replaced(node, ["param", N_CONSTANTS]),
    "negative index": lambda node: replaced(node, ["var", -1]),
    "index that is no integer": lambda node: replaced(node, ["param", 0.0]),
    "true as an index": lambda node: replaced(node, ["var", True]),
    "one argument too many": lambda node: replaced(node, ["sub", *[["var", 0]] * 3]),
    "number as a condition": lambda node: replaced(node, ["where", *[["var", 0]] * 3]),
    "number added to a condition": lambda node: replaced(node, ["add", ["lt", ["var", 0], ["var", 1]], ["var", 0]]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@settings(max_examples=15, deadline=None)
@given(trees(), st.data())
def test_one_damaged_node_anywhere_is_refused(damage, tree, data):
    check_tree(tree, N_INPUTS, N_CONSTANTS)
    damaged = copy.deepcopy(tree)
    every = nodes(damaged)
    damage(every[data.draw(st.integers(0, len(every) - 1))])
    with pytest.raises(ValueError):
        check_tree(damaged, N_INPUTS, N_CONSTANTS)


def size(tree: Any) -> int:
    """Nodes of the tree with n-ary operations written as binary ones: an oracle by plain recursion."""
    if tree[0] in LEAVES:
        return 1
    return sum(map(size, tree[1:])) + max(1, len(tree) - 2)


@settings(max_examples=60, deadline=None)
@given(trees())
def test_complexity_counts_nodes_and_grows_from_part_to_whole(tree):
    assert complexity(tree) == size(tree)
    assert all(complexity(part) < complexity(tree) for part in nodes(tree)[1:])
    assert complexity(["sin", tree]) == complexity(tree) + 1


@settings(max_examples=60, deadline=None)
@given(st.lists(trees(4), min_size=3, max_size=5), st.sampled_from(["add", "mul", "maximum"]))
def test_complexity_does_not_depend_on_how_sums_and_products_are_nested(parts, name):
    a, b, *rest = parts
    assert complexity([name, a, b, *rest]) == complexity([name, a, [name, b, *rest]]) == complexity([name, [name, a, b], *rest])


@settings(max_examples=60, deadline=None)
@given(trees(), st.sampled_from(["sin", "mul", "add", "tanh", "param"]), st.integers(2, 5))
def test_a_weight_counts_every_occurrence(tree, name, weight):
    occurrences = sum(max(1, len(n) - 2) if name not in LEAVES else 1 for n in nodes(tree) if n[0] == name)
    assert complexity(tree, {name: weight}) == complexity(tree) + (weight - 1) * occurrences


@settings(max_examples=25, deadline=None)
@given(trees(8), constants, points)
def test_through_sympy_and_back_the_tree_has_the_value_of_plain_recursion(tree, numbers, at):
    again, found = to_tree(from_tree(tree, symbols(N_INPUTS), numbers, evaluate=True), symbols(N_INPUTS))
    check_tree(again, N_INPUTS, len(found))
    expected = value(tree, at, numbers)
    program = compile_program([again], N_INPUTS, len(found))
    assert evaluate_numpy(program, np.array([at]), found)[0, 0] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(trees(6), constants), min_size=1, max_size=4), points)
def test_joined_trees_keep_their_values_over_the_common_constants(parts, at):
    before = copy.deepcopy(parts)
    joined, numbers = join(parts)
    assert parts == before
    assert [value(tree, at, numbers) for tree in joined] == [value(tree, at, own) for tree, own in parts]


@settings(max_examples=60, deadline=None)
@given(st.lists(trees(6), min_size=1, max_size=3), constants, points)
def test_trees_over_fewer_inputs_keep_their_values(several, numbers, at):
    fewer, read = renumbered(several)
    assert read == sorted({n[1] for tree in several for n in nodes(tree) if n[0] == "var"})
    assert [value(t, tuple(at[i] for i in read), numbers) for t in fewer] == [value(t, at, numbers) for t in several]
    assert all(variables(tree) <= frozenset(range(len(read))) for tree in fewer)


@settings(max_examples=60, deadline=None)
@given(trees(), constants, points, st.integers(0, 4))
def test_over_another_input_it_is_the_function_of_that_input(tree, numbers, at, index):
    row = [math.nan] * 5
    row[index] = at[0]
    assert value(with_input(tree, index), tuple(row), numbers) == value(tree, (at[0],) * N_INPUTS, numbers)


NUMPY = {"reciprocal": lambda a: 1 / a, "erf": np.vectorize(math.erf), "neg": np.negative, "asinh": np.arcsinh}
NUMPY |= {"mul": np.multiply, "sub": np.subtract, "div": np.divide, "atan": np.arctan}


def scheduled(program: Program, z: np.ndarray, numbers: list[float]) -> np.ndarray:
    """The batched form run as its docstring says, in float64: an interpreter of its own."""
    steps = schedule(program)
    assert steps is not None

    def call(name: str, *args: Any) -> Any:
        return NUMPY.get(name, getattr(np, name, None))(*args)

    def linear(form: Any, columns: np.ndarray) -> np.ndarray:
        out = np.zeros((len(z), form["rows"]))
        for row, column, sign, which in zip(*form["weight"], strict=True):
            out[:, row] += sign * fixed[which] * columns[:, column]
        for row, sign, which in zip(*form["bias"], strict=True):
            out[:, row] += sign * fixed[which]
        return out

    fixed = [*numbers, 1.0, *program.literals]
    for name, args in steps["scalars"]:
        fixed.append(float(call(name, *(np.float64(fixed[a]) for a in args))))
    columns = z
    for level in steps["levels"]:
        known = columns  # a step reads earlier levels only
        for step in level:
            if step["op"] == "linear":
                new = linear(step, known)
            else:
                read = [known[:, i] if kind == "column" else np.array(fixed)[i] for kind, i in step["args"]]
                new = call(step["op"], *read)
            columns = np.concatenate([columns, new], axis=1)
    return linear(steps["final"], columns)


@settings(max_examples=80, deadline=None)
@given(st.lists(trees(10, conditions=False), min_size=1, max_size=4), constants, st.lists(points, min_size=1, max_size=4))
def test_the_batched_form_has_the_values_of_plain_recursion(several, numbers, at):
    program = compile_program(several, N_INPUTS, N_CONSTANTS)
    expected = [[value(tree, z, numbers) for tree in several] for z in at]
    np.testing.assert_allclose(scheduled(program, np.array(at), numbers), expected, rtol=1e-9, atol=1e-9)
