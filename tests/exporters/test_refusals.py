"""What an export or an attention cannot do is one line, and what no provider ran is in the table."""

from __future__ import annotations

import pytest
import torch
from checkpoints import tiny_checkpoint
from long import long
from rich.console import Console

from compress import from_pretrained
from compress.cli.tables import export_table


def test_rotary_positions_that_grow_are_refused_for_onnx(compress, tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}
    folder = tiny_checkpoint(tmp_path / "model", "llama", rope_parameters=rope)
    code, _, err = compress("export", folder, "--onnx")
    expected = "error: ONNX has no rotary positions of type 'dynamic'; supported: default, linear, llama3, yarn\n"
    assert (code, err) == (2, expected)
    assert not (folder / "onnx").exists()


def test_a_graph_that_no_provider_ran_is_in_the_table(capsys):
    measured = {"greedy_equal": 64, "greedy_tokens": 64, "max_abs_difference": 0.1, "max_abs_logit": 9.0}
    parity = {
        "CPUExecutionProvider": {"not_run": "could not find an implementation for Mul(14)"},
        "CUDAExecutionProvider": {**measured, "top1_agreement": 1.0},
    }
    Console(width=200).print(export_table({"onnx": {"bytes": {"model.onnx": 2**20}, "parity": parity, "opset": 23}}))
    printed = capsys.readouterr().out
    assert "not by CPUExecutionProvider: could not find an implementation for Mul(14)" in printed
    assert "64/64" in printed


@pytest.mark.parametrize(
    ("kernel", "call", "message"),
    [
        pytest.param(  # compiling it takes half a minute
            "flex_attention", {}, "needs a mask of four dimensions: load with attn_implementation='sdpa'", marks=long
        ),
        ("eager", {"output_attentions": True}, "has no weights to give: leave output_attentions out"),
    ],
)
def test_crystallized_attention_says_what_it_cannot(tmp_path, kernel, call, message):
    folder = tiny_checkpoint(tmp_path / "model", "llama", "crystallized_attention")
    model = from_pretrained(folder, attn_implementation=kernel)
    with pytest.raises(ValueError, match=message):
        model(torch.arange(20).view(2, 10), **call)
