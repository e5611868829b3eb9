"""Interval rules of the operations: from the range of the inputs, a range that holds every value an expression can take.

They certify, before an expression ships, that no input inside the calibrated box leads to NaN or infinity (Moore, Kearfott and
Cloud, "Introduction to Interval Analysis", SIAM 2009, chapter 5). A rule answers None where it cannot rule that out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

Interval = tuple[float, float]  # lowest, highest
Rule = Callable[..., Interval | None]

FLOAT32_MAX = float(np.finfo(np.float32).max)
_SLACK = 1e-6  # a float32 operation is off by about 1e-7 of its result; relative, so a bound of zero keeps its sign


def widen(interval: Interval | None) -> Interval | None:
    """The interval with room for float32 rounding, or None where it leaves the float32 range."""
    if interval is None:
        return None
    low, high = (float(end) for end in interval)
    low, high = low - _SLACK * abs(low), high + _SLACK * abs(high)
    # NaN compares as False, so an end that is NaN refuses the interval as well.
    return (low, high) if low >= -FLOAT32_MAX and high <= FLOAT32_MAX else None


def monotone(function: Callable[[float], Any], least: float = -math.inf, most: float = math.inf, falling: bool = False) -> Rule:
    """Rule of a monotone function that is finite on [least, most]."""

    def rule(x: Interval) -> Interval | None:
        if x[0] < least or x[1] > most:
            return None
        ends = float(function(x[0])), float(function(x[1]))
        return (ends[1], ends[0]) if falling else ends

    return rule


def within(low: float, high: float) -> Rule:
    """Rule of a function whose values all lie in [low, high], whatever its arguments."""
    return lambda *_: (low, high)


def _hull(values: Any) -> Interval:
    values = [float(v) for v in values]
    return min(values), max(values)


def add(x: Interval, y: Interval) -> Interval:
    """Sums of the lower and of the upper ends."""
    return x[0] + y[0], x[1] + y[1]


def sub(x: Interval, y: Interval) -> Interval:
    """Lowest less highest, and highest less lowest."""
    return x[0] - y[1], x[1] - y[0]


def mul(x: Interval, y: Interval) -> Interval:
    """Any two values of x and y, as if they were independent; see `square`."""
    # The product is linear in each factor, so its extremes over a box are at the corners.
    return _hull(a * b for a, b in itertools.product(x, y))


def square(x: Interval) -> Interval:
    """x·x with both factors the same value: never negative, which `mul` cannot know."""
    low, high = absolute(x)
    return low * low, high * high


def neg(x: Interval) -> Interval:
    """Turned over."""
    return -x[1], -x[0]


def reciprocal(x: Interval) -> Interval | None:
    """None where x may be 0."""
    # A range that holds 0 holds the pole.
    return None if x[0] <= 0 <= x[1] else _hull(1 / np.float64(end) for end in x)


def div(x: Interval, y: Interval) -> Interval | None:
    """None where y may be 0."""
    inverse = reciprocal(y)
    return None if inverse is None else mul(x, inverse)


def power(x: Interval, y: Interval) -> Interval | None:
    """x ** y: monotone in each argument for x ≥ 0, so its extremes are at corners; a negative base may give NaN."""
    # 0 to a negative power is a pole, and 0⁰ = 1 beside 0^ε = 0 a jump.
    if x[0] < 0 or (x[0] == 0 and y[0] <= 0):
        return None
    return _hull(np.float64(a) ** np.float64(b) for a, b in itertools.product(x, y))


def absolute(x: Interval) -> Interval:
    """Down to 0 where x may be 0."""
    low, high = sorted((abs(x[0]), abs(x[1])))
    return (0.0 if x[0] <= 0 <= x[1] else low), high


def cosh(x: Interval) -> Interval:
    """Even, and rising with |x|."""
    low, high = absolute(x)
    return float(np.cosh(low)), float(np.cosh(high))


def tan(x: Interval) -> Interval | None:
    """Monotone between two poles; the slack also keeps away from them."""
    # Poles are at π/2 + kπ: both ends must lie on one branch.
    branches = {math.floor(end / math.pi + 0.5) for end in (x[0] - _SLACK, x[1] + _SLACK)}
    return (math.tan(x[0]), math.tan(x[1])) if len(branches) == 1 else None


def maximum(x: Interval, y: Interval) -> Interval:
    """Of any two values."""
    return max(x[0], y[0]), max(x[1], y[1])


def minimum(x: Interval, y: Interval) -> Interval:
    """Of any two values."""
    return min(x[0], y[0]), min(x[1], y[1])


def where(_: Interval, x: Interval, y: Interval) -> Interval:
    """Of either branch."""
    # Whichever branch is taken: the condition is not looked at.
    return min(x[0], y[0]), max(x[1], y[1])
