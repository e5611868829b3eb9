"""Equations printed by PySR become trees with their value; everything else is a ValueError, at once, with nothing executed."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from compress.regression.engines.pysr import read_hall_of_fame
from compress.regression.front import choose
from compress.symbolic.compile import compile_program
from compress.symbolic.equation import read_equation
from compress.symbolic.evaluate import evaluate_numpy

A, B = 0.75, -1.25
VALUES = {
    "x0 + x1": A + B,
    "(x0 * 2.5) - 1.0f-3": A * 2.5 - 1e-3,
    "1.5e-1*x0^2 - x1 ^ -1.0": 0.15 * A**2 - 1 / B,
    "x0 ** 3": A**3,
    "x0 ^ 0.5": math.sqrt(A),
    "-x1 + +x0": A - B,
    "sin(x0) / cos(x1)": math.sin(A) / math.cos(B),
    "inv(x0) - square(x1) + cube(x0)": 1 / A - B**2 + A**3,
    "exp(-abs(x1)) * log(safe_sqrt(x0))": math.exp(B) * math.log(math.sqrt(A)),
    "max(x0, x1) - min(x0, 0.1) + relu(x1)": A - 0.1,
    "mod(x1, x0)": B % A,
    "cbrt(x1) * sign(x1) + log1p(x0)": (1.25) ** (1 / 3) + math.log1p(A),
    "2 ^ 3 + sin(1.5) * x0": 8 + math.sin(1.5) * A,
    "3.0": 3.0,
    "3": 3.0,
    ".5f0 * x0": 0.5 * A,
}


@pytest.mark.parametrize(("text", "expected"), VALUES.items())
def test_an_equation_keeps_its_value(text, expected):
    tree, constants = read_equation(text, ["x0", "x1"])
    program = compile_program([tree], 2, len(constants))
    assert evaluate_numpy(program, np.array([[A, B]]), constants)[0, 0] == pytest.approx(expected, rel=1e-12)


REFUSED = {
    "attribute": ("x0.__class__", "Attribute is not allowed"),
    "call of attribute": ("x0.real()", "Call is not allowed"),
    "import": ("__import__('os').getpid()", "not allowed|no operation"),
    "builtin": ("open(x0)", "no operation 'open'"),
    "eval": ("eval('1')", "a number that is not finite, or no number"),
    "lambda": ("(lambda: 1)()", "Call is not allowed"),
    "comprehension": ("[x for x in x0]", "ListComp is not allowed"),
    "subscript": ("x0[0]", "Subscript is not allowed"),
    "walrus": ("(y := x0)", "NamedExpr is not allowed"),
    "condition": ("x0 if x1 else 2", "IfExp is not allowed"),
    "keyword": ("sin(x=x0)", "Call is not allowed"),
    "star": ("max(*x0)", "Starred is not allowed"),
    "matmul": ("x0 @ x1", "BinOp is not allowed"),
    "unknown variable": ("x0 + x7", "unknown variable 'x7'"),
    "unknown function": ("gamma(x0)", "no operation 'gamma'"),
    "arity": ("sin(x0, x1)", "'sin' takes 1"),
    "text": ("'abc'", "no number"),
    "complex": ("2j", "no number"),
    "bool": ("True", "no number"),
    "huge number": ("1e999 * x0", "not finite"),
    "huge integer": ("9" * 4000, "not finite"),
    "power tower": ("9^9^9^9", "not finite"),
    "huge exponent": ("x0 ^ 1e9", "exponent of 1e.09"),
    "exp tower": ("exp(exp(exp(99.0))) * x0", "not finite"),
    "division by zero": ("1/0", "not finite"),
    "statement": ("import os", "not an equation"),
    "two lines": ("x0; x1", "not an equation"),
    "empty": ("", "not an equation"),
    "null byte": ("x0\0", "not an equation"),
    "parentheses": ("(" * 5000 + "x0" + ")" * 5000, "not an equation|nested"),
    "minus chain": ("-" * 15000 + "x0", "not an equation|nested"),
    "deep calls": ("sin(" * 150 + "x0" + ")" * 150, "nested deeper"),
    "long": ("x0+" * 10000 + "x0", "characters; at most"),
    "many": ("+".join(["x0"] * 6000), "nested deeper|not an equation"),
    "doubling": ("cbrt(" * 60 + "x0" + ")" * 60, "more than 10000 nodes|nested deeper"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_everything_else_is_refused_at_once(text, message):
    started = time.perf_counter()
    with pytest.raises(ValueError, match=message):
        read_equation(text, ["x0", "x1"])
    assert time.perf_counter() - started < 2


RECORDED = """Complexity,Loss,Equation
1,0.9,"0.31"
5,0.25,"x0 * 1.9f0"
9,0.01,"(x0 * 1.9) + sin(x1)"
11,0.009,"__import__('os').system('touch owned')"
"""


def test_a_recorded_hall_of_fame_is_a_front(tmp_path):
    path = tmp_path / "hall_of_fame.csv"
    path.write_text(RECORDED)
    front = read_hall_of_fame(path, ["x0", "x1"])
    assert [(c.complexity, c.train_loss, c.held_out_loss) for c in front.candidates] == [
        (1, 0.9, None),
        (5, 0.25, None),
        (9, 0.01, None),
    ]
    assert len(front.notes) == 1
    assert "skipped a row" in front.notes[0]
    assert choose(front, "knee") == 1
    assert choose(front, 10) == 2
    with pytest.raises(ValueError, match="without held-out rows"):
        choose(front, "held_out")


def test_the_backup_is_read_where_the_file_is_gone_or_cut_off(tmp_path):
    path = tmp_path / "hall_of_fame.csv"
    with pytest.raises(FileNotFoundError, match="no hall of fame"):
        read_hall_of_fame(path, ["x0", "x1"])
    path.with_name("hall_of_fame.csv.bak").write_text(RECORDED)
    assert len(read_hall_of_fame(path, ["x0", "x1"]).candidates) == 3
    path.write_text("Complexity,Loss,Equ")
    assert len(read_hall_of_fame(path, ["x0", "x1"]).candidates) == 3
    path.with_name("hall_of_fame.csv.bak").write_text("")
    with pytest.raises(ValueError, match="no usable equation"):
        read_hall_of_fame(path, ["x0", "x1"])
