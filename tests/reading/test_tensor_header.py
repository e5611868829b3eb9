"""A safetensors header of a stranger: shapes agree with the bytes, or the file is not mapped."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save

from compress.checkpoint.shards import Shards
from compress.reading import tensor_header

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def written(path, header, data=b"\0" * 24, length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


HOSTILE = {
    "a length beyond the file": ((b"{}", b"", 2**62), "not a readable safetensors file"),
    "nesting": ((b"[" * 100_000, b""), "nested deeper than 130"),
    "no object": ((b"[]", b""), "header is a JSON list, not an object"),
    "a shape of another size": (({"w": {**ENTRY, "shape": [2, 4]}},), "F32 of shape [2, 4] is 32 bytes, the offsets say 24"),
    "a shape that overflows": (({"w": {**ENTRY, "shape": [2**40, 2**40]}},), "the offsets say 24"),
    "a shape below zero": (({"w": {**ENTRY, "shape": [-2, -3]}},), "a shape is a list of at most 16 sizes"),
    "a shape of words": (({"w": {**ENTRY, "shape": ["2", 3]}},), "a shape is a list of at most 16 sizes"),
    "a long shape": (({"w": {**ENTRY, "shape": [1] * 10_000 + [2, 3]}},), "a shape is a list of at most 16 sizes"),
    "offsets beyond the file": (
        ({"w": {**ENTRY, "shape": [9], "data_offsets": [0, 36]}},),
        "tensors of 36 bytes in a file that holds 24",
    ),
    "a gap": (({"w": {**ENTRY, "shape": [1], "data_offsets": [20, 24]}},), "tensors overlap or leave a gap at byte 0"),
    "an overlap": (({"a": ENTRY, "b": {**ENTRY, "shape": [1], "data_offsets": [8, 12]}},), "overlap or leave a gap"),
    "bytes left over": (
        ({"w": {**ENTRY, "shape": [1], "data_offsets": [0, 4]}},),
        "tensors of 4 bytes in a file",
    ),
    "an unknown dtype": (({"w": {**ENTRY, "dtype": "__import__"}},), "dtype '__import__' given; allowed: F64"),
    "another key": (({"w": {**ENTRY, "code": "1"}},), "needs dtype, shape and data_offsets, and nothing else"),
}


@pytest.mark.parametrize(("file", "message"), HOSTILE.values(), ids=HOSTILE)
def test_it_is_refused_in_a_line(tmp_path, file, message):
    written(tmp_path / "model.safetensors", *file)
    with pytest.raises(ValueError) as error:
        Shards(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_three_bytes(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\1\0\0")
    with pytest.raises(ValueError, match="not a readable safetensors file; it may be cut off"):
        Shards(tmp_path)


def test_a_file_that_the_library_wrote_is_read(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(0, 4, dtype=torch.bfloat16), "c": torch.tensor(True)}
    (tmp_path / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    tensor_header.check(tmp_path / "model.safetensors")
    found = Shards(tmp_path)
    assert {name: found.tensor(name).tolist() for name in found} == {name: value.tolist() for name, value in tensors.items()}


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "pickled.bin", 3])
def test_an_index_leads_nowhere_else(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ValueError, match=r"allowed: \.safetensors files beside it"):
        Shards(tmp_path)


def test_an_index_that_names_what_no_file_holds(tmp_path):
    written(tmp_path / "a.safetensors", {"w": ENTRY})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys("wv", "a.safetensors")}))
    with pytest.raises(ValueError, match="no file holds 'v', which the index names"):
        Shards(tmp_path)
