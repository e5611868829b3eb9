"""What `certify` promises: ranges that hold every float32 value in the box, or a refusal where some point has none."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import N_CONSTANTS, N_INPUTS, constants, trees

from compress.nn.symbolic import ExpressionProgram
from compress.symbolic.compile import compile_program, program_to_json
from compress.symbolic.evaluate import certify
from compress.symbolic.operations import apply
from compress.symbolic.program import Program

X = ["var", 0]


def run_torch(program: Program, z: np.ndarray, numbers: list[float]) -> np.ndarray:
    module = ExpressionProgram(program_to_json(program))
    module.load_state_dict({"constants": torch.tensor(numbers, dtype=torch.float32)})
    with torch.no_grad():
        return module(torch.tensor(z, dtype=torch.float32)).numpy()


@settings(max_examples=100, deadline=None)
@given(trees(), constants, st.lists(st.tuples(st.floats(-3, 3), st.floats(0, 2)), min_size=N_INPUTS, max_size=N_INPUTS))
def test_certified_ranges_hold_every_value_in_the_box(tree, numbers, box):
    low, high = (np.array(ends, dtype=np.float32) for ends in zip(*((a, a + w) for a, w in box), strict=True))
    program = compile_program([tree], N_INPUTS, N_CONSTANTS)
    ranges = certify(program, numbers, low.tolist(), high.tolist())
    if ranges is None:
        return
    inside = low + np.array(list(itertools.product((0.0, 0.31, 1.0), repeat=N_INPUTS))) * (high - low)
    values = run_torch(program, np.clip(inside, low, high), numbers)
    assert np.isfinite(values).all()
    assert (values >= ranges[0][0]).all()
    assert (values <= ranges[0][1]).all()


RANGES = {  # tree over z0 ∈ [−2, 3] → its exact range, or None where some point of the box has no finite value
    "square": (["mul", X, X], (0, 9)),
    "fourth power": (["pow", X, ["int", 4]], (0, 81)),
    "analytic quotient": (apply("aq", ["int", 1], X), (1 / math.sqrt(10), 1)),
    "sigmoid": (apply("sigmoid", X), (1 / (1 + math.exp(2)), 1 / (1 + math.exp(-3)))),
    "cosh": (["cosh", X], (1, math.cosh(3))),
    "where": (["where", ["lt", X, ["int", 0]], ["neg", X], ["exp", X]], (-3, math.exp(3))),
    "root of abs": (apply("sqrtabs", X), (0, math.sqrt(3))),
    "tan off the pole": (["tan", ["mul", X, ["rational", 1, 2]]], (math.tan(-1), math.tan(1.5))),
    "pole": (["reciprocal", X], None),
    "log": (["log", X], None),
    "log of abs": (apply("logabs", X), None),
    "root": (["sqrt", X], None),
    "fractional power": (["pow", X, ["rational", 1, 3]], None),
    "tan over a pole": (["tan", X], None),
    "overflow": (["exp", ["mul", X, ["int", 40]]], None),
    "acosh": (["acosh", X], None),
    "asin": (["asin", X], None),
    "atanh": (["atanh", X], None),
    "nan": (["where", ["lt", X, ["int", 9]], X, ["nan"]], None),
}


@pytest.mark.parametrize(("tree", "expected"), RANGES.values(), ids=RANGES.keys())
def test_certify_knows_the_range_or_refuses(tree, expected):
    ranges = certify(compile_program([tree], 1, 0), [], [-2.0], [3.0])
    if expected is None:
        assert ranges is None
    else:
        assert ranges is not None
        assert ranges[0] == pytest.approx(expected, rel=1e-4, abs=1e-4)
