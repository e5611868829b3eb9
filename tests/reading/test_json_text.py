"""JSON of a stranger: counted before it is parsed, and refused with what is too much."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.reading import json_text

HOSTILE = {
    "nesting": ("[" * 1_000_000, "JSON nested deeper than 130"),
    "nesting behind a string": ('["[", ' + "[" * 200, "JSON nested deeper than 130"),
    "empty lists": ("[" + "[]," * 2_000_000 + "]", "more than 1,000,000 values of JSON"),
    "quotes": ('"' * 10_000_000, "more than 1,000,000 values of JSON"),
    "an open string of escapes": ('"' + '\\"' * 1_000_000, "not JSON"),
    "digits": ("1" * 1_000_000, "more than 4,300 digits"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8 (byte 8)"),
    "nothing": ("", "not JSON"),
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_it_is_refused_in_a_line(text, message):
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(ValueError) as error:
        json_text.loads(text, "config.json")
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message in str(error.value)
    assert str(error.value).startswith("config.json: ")
    assert "\n" not in str(error.value)
    assert seconds < 2
    assert peak < 100 * 2**20


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=12)


@settings(max_examples=40, deadline=None)
@given(values)
def test_what_is_within_the_limits_is_what_it_says(value):
    assert json_text.loads(json.dumps(value), "x") == value
    assert json_text.loads(json.dumps(value, ensure_ascii=False), "x") == value


def test_parsed_values_have_the_same_limits():
    deep = wide = None
    for _ in range(131):
        deep = [deep]
    wide = [[None] * 1000] * 1000
    with pytest.raises(ValueError, match="plan: nested deeper than 130"):
        json_text.check_values(deep, "plan")
    with pytest.raises(ValueError, match="plan: more than 1,000,000 values"):
        json_text.check_values(wide, "plan")
    json_text.check_values(wide[:10], "plan")
