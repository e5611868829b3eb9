"""A block that fails costs its own rows, whenever it fails; the first block of a kind of runtime that works is judged."""

from __future__ import annotations

import pytest
from recipes_for_tests import tiny_folder

from compress.data import TextSource
from compress.measuring import run, session
from compress.measuring.run import bench
from compress.measuring.runtimes import EagerRunner, open_runner

FAST = {"prefill_length": 8, "contexts": [8], "steps": 2, "repeats": 1, "warmup": 1, "cold_starts": 0}


class Refusing(EagerRunner):
    """As torch.compile without a C compiler: what is missing shows at the first call."""

    def forward(self, ids):
        raise RuntimeError("no C compiler here\nand a page of more")


def test_positions_and_vocabulary_are_those_that_transformers_reads(tmp_path, monkeypatch):
    """GPT-2 calls its positions otherwise."""
    monkeypatch.setattr(session, "open_runner", lambda *_: pytest.fail("a model was loaded"))
    folder, small = tiny_folder(tmp_path / "model", "gpt2"), tiny_folder(tmp_path / "small", "gpt2", vocab_size=50)
    text = {"text": str(folder / "text.txt"), "sequences": 1}
    options = {**FAST, "runtimes": ["eager"], "devices": ["cpu"]}
    for more, length, message in (
        ({"prefill_length": 129}, 16, "model has 128 positions; .* must fit: 129 given"),
        ({}, 129, "text 'own': windows of 129 tokens, and the model has 128 positions"),
    ):
        with pytest.raises(ValueError, match=message):
            bench([folder], texts={"own": TextSource(**text, length=length)}, **{**options, **more})
    with pytest.raises(ValueError, match=r"text 'own': token .* is beyond the model's vocabulary of 50"):
        bench([small], texts={"own": TextSource(**text, length=16)}, **options)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Measures a tiny plain model, in its own text's perplexity too."""
    folder = tiny_folder(tmp_path_factory.mktemp("model"), "llama")
    texts = {"own": TextSource(text=str(folder / "text.txt"), length=16, sequences=2)}
    return lambda **options: bench([folder], texts=texts, **FAST, **options)


def test_a_runtime_that_fails_where_it_first_runs_is_skipped_with_its_reason(measured, monkeypatch):
    def opened(folder, runtime, device, dtype, threads):
        runner = open_runner(folder, "eager", device, dtype, threads)
        return Refusing(runner.model, device) if runtime == "compile" else runner

    monkeypatch.setattr(session, "open_runner", opened)
    found = measured(runtimes=["eager", "compile"], devices=["cpu"])
    assert [row["runtime"] for row in found["rows"]] == ["eager"]
    assert found["skipped"] == [{"runtime": "compile", "device": "cpu", "reason": "no C compiler here"}]


def test_where_the_fastest_device_fails_the_next_is_judged(measured, monkeypatch):
    def opened(folder, runtime, device, dtype, threads):
        if (runtime, device) == ("onnx", "cuda"):
            raise RuntimeError("no driver")
        return open_runner(folder, "eager", "cpu", dtype, threads)

    monkeypatch.setattr(run, "choose_devices", lambda _: ["cpu", "cuda"])
    monkeypatch.setattr(session, "obstacle", lambda *_: None)
    monkeypatch.setattr(session, "exported", lambda folder, *_, **__: folder)
    monkeypatch.setattr(session, "open_runner", opened)
    found = measured(runtimes=["eager", "onnx"])
    assert [(row["runtime"], row["device"]) for row in found["rows"]] == [("eager", "cuda"), ("eager", "cpu"), ("onnx", "cpu")]
    assert [row["quality"]["device"] for row in found["rows"]] == ["cuda", "cuda", "cpu"]
    assert found["skipped"] == [{"runtime": "onnx", "device": "cuda", "reason": "no driver"}]


def test_int8_is_asked_for_only_where_the_graph_is_float32(measured, monkeypatch):
    asked = []

    def exported(folder, work, dtype, *, int8):
        asked.append((dtype, int8))
        raise RuntimeError("that is enough")

    monkeypatch.setattr(session, "exported", exported)
    measured(runtimes=["eager", "onnx", "ort-int8"], devices=["cpu"], dtype="bfloat16")
    assert asked == [("bfloat16", False), ("float32", True)]
