"""The session wrapper: masks, caches, providers, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_folders import folders

from exporters.onnx.runtime import CPU, OnnxModel, available_providers, positions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return OnnxModel(folders("llama", tmp_path_factory)[1], threads=1)


def test_lists_arrays_and_tensors_are_the_same_ids(model: OnnxModel) -> None:
    ids = [[5, 6, 7], [8, 9, 1]]
    expected = model.forward(ids)[0]
    assert expected.dtype == np.float32
    assert expected.shape == (2, 3, 97)
    np.testing.assert_array_equal(model.forward(np.array(ids, np.int32))[0], expected)
    np.testing.assert_array_equal(model.forward(torch.tensor(ids))[0], expected)


def test_padding_on_the_left_changes_nothing(model: OnnxModel) -> None:
    alone = model.forward([[5, 6, 7, 8]])[0]
    padded = model.forward([[1, 2, 3, 4, 5, 9], [0, 0, 5, 6, 7, 8]], [[1] * 6, [0, 0, 1, 1, 1, 1]])[0]
    np.testing.assert_allclose(padded[1, 2:], alone[0], atol=1e-5)
    assert positions(np.array([[0, 0, 1, 1]])).tolist() == [[1, 1, 0, 1]]


def test_a_cache_on_a_device_gives_what_arrays_give(model: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The route of other providers, walked on the CPU: bound values instead of arrays."""
    plain = model.generate_greedy([[5, 6, 7]], 8)
    monkeypatch.setattr(model, "provider", "another")
    _, cache = model.forward([[5, 6, 7]])
    assert model.cache_length(cache) == 3
    assert not isinstance(cache[0], np.ndarray)
    np.testing.assert_array_equal(model.generate_greedy([[5, 6, 7]], 8), plain)


def test_generate_of_nothing_is_empty(model: OnnxModel) -> None:
    assert model.generate_greedy([[5, 6, 7]], 0).shape == (1, 0)
    assert model.cache_length(None) == 0
    assert model.n_layers == 2


def test_a_mask_must_cover_the_cache(model: OnnxModel) -> None:
    _, cache = model.forward([[5, 6, 7]])
    with pytest.raises(ValueError, match=r"attention_mask is \(1, 1\); 1 new tokens on 3 cached ones need \(1, 4\)"):
        model.forward([[8]], [[1]], cache)


def test_errors_name_what_is_missing(model: OnnxModel, tmp_path: Path) -> None:
    assert available_providers()[0] == CPU
    with pytest.raises(ValueError, match="no 'TPUExecutionProvider' here; there is CPUExecutionProvider"):
        OnnxModel(model.folder, "TPUExecutionProvider")
    with pytest.raises(FileNotFoundError, match=r"no model\.onnx; write one with `compress export DIR --onnx`"):
        OnnxModel(tmp_path)
