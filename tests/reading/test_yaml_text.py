"""YAML of a stranger: an error with its line before anything is built, in hardly any time or memory."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from compress.reading import yaml_text

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)

HOSTILE = {
    "aliases of aliases": (BOMB, "line 5: more than 20,000 values, aliases counted at what they stand for"),
    "an alias within its anchor": ("a: &a [*a]", "line 1: *a stands for nothing that is complete before it"),
    "an alias of nothing": ("a: 1\nb: *x", "line 2: *x stands for nothing"),
    "nesting of lists": ("a:\n  " + "[" * 100_000, "line 2: nested deeper than 32"),
    "nesting of mappings": ("{a: " * 5000, "line 1: nested deeper than 32"),
    "a long list": ("- 1\n" * 40_000, "line 20000: more than 20,000 values"),
    "a long text": ("a: " + "x" * 300_000, "300,003 characters of YAML; at most 262,144 are read"),
    "a key twice": ("seed: 1\nmodel: x\nseed: 2", "line 3: key 'seed' is given already in line 1; keep one"),
    "a key twice inside": ("a: {b: 1, c: 2, b: 3}", "line 1: key 'b' is given already in line 1"),
    "a key that is a list": ("? [a]\n: 1", "line 1: a list, mapping or alias as a key"),
    "code": (
        "a:\n  - !!python/object/apply:os.system ['true']",
        "line 2: tag 'tag:yaml.org,2002:python/object/apply",
    ),
    "an integer to base 60": ("a: " + ":".join(["1"] * 100_000), "line 1: 199,999 characters without quotes"),
    "two documents": ("a: 1\n---\na: 2", "line 2: a second document begins"),
    "an open bracket": ("a: 1\nsteps: [", "line 3: not valid YAML"),
    "a NUL": ("a: \0", "not valid YAML"),
    "half a character": ("a: \ud800", "half a character"),
    "a merge of a number": ("<<: 3", "line 1: not valid YAML: expected a mapping"),
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_it_is_refused_with_its_line_before_anything_is_built(text, message):
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(ValueError) as error:
        yaml_text.loads(text, "r.yaml")
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message in str(error.value)
    assert str(error.value).startswith("r.yaml")
    assert "\n" not in str(error.value)
    assert seconds < 2
    assert peak < 32 * 2**20


def test_plain_recipes_are_what_they_say():
    text = "# a comment\nbase: &base {rank: 3, form: plain}\nsteps: [{<<: *base, rank: 4}, *base]\n"
    text += "day: 2001-01-01\nnone: ~\n'1': 0x10"
    assert yaml_text.loads(text, "r.yaml") == {
        "base": {"rank": 3, "form": "plain"},
        "steps": [{"rank": 4, "form": "plain"}, {"rank": 3, "form": "plain"}],
        "day": "2001-01-01",
        "none": None,
        "1": 16,
    }


def test_a_file_names_itself_and_the_byte_that_is_not_utf_8(tmp_path):
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"# caf\xe9\nmodel: novella\n")
    with pytest.raises(ValueError, match=r"latin\.yaml: not UTF-8 \(byte 6\); save it as UTF-8"):
        yaml_text.read(file)
    file.write_bytes(b"\xef\xbb\xbfmodel: novella")
    assert yaml_text.read(file) == {"model": "novella"}
