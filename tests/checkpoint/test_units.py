"""Tensors that wait in a file are a mapping like any other."""

import pytest
import torch

from compress.checkpoint.units import Artefact, Spilled, hash_tensors, write_unit


def test_spilled_tensors_are_a_mapping(tmp_path):
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.bfloat16)}
    write_unit(tmp_path / "tensors.safetensors", Artefact(tensors, {"said": 1}), "source")
    spilled = Spilled(tmp_path / "tensors.safetensors")
    assert spilled.metadata == {"said": 1}
    assert list(spilled) == ["a", "b"]
    assert "c" not in spilled
    assert spilled.get("c") is None
    with pytest.raises(KeyError):
        spilled["c"]
    assert torch.equal(spilled["b"], tensors["b"])
    assert hash_tensors(spilled) == hash_tensors(tensors)


def test_a_hash_is_of_names_dtypes_shapes_and_values():
    one = {"a": torch.zeros(4)}
    others = [{"b": torch.zeros(4)}, {"a": torch.zeros(2, 2)}, {"a": torch.zeros(4, dtype=torch.int32)}, {"a": -one["a"]}, {}]
    assert len({hash_tensors(each) for each in [one, *others]}) == 6
