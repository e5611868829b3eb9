"""The linear replacements against plain matrix products."""

from __future__ import annotations

import pytest
import torch

from compress.nn.linear import DenseLinear


def test_an_extra_bias_is_the_last_column_of_the_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(shape, generator=generator) for shape in ((5, 3), (5,), (2, 4, 3)))
    linear = DenseLinear(3, 5, bias=False, extra_bias=True)
    linear.load_state_dict({"weight": torch.cat([weight, bias[:, None]], dim=1)})
    torch.testing.assert_close(linear(x), x @ weight.T + bias)
    assert linear.in_features == 3


def test_a_bias_is_stored_in_one_place_only() -> None:
    with pytest.raises(ValueError, match="`bias` or `extra_bias`, not both"):
        DenseLinear(3, 5, bias=True, extra_bias=True)
