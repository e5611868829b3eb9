"""Runners take turns and generate what the model generates; results hold what was asked for, and no path or user."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest
import torch
from checkpoints import tiny_checkpoint
from transformers import AutoModelForCausalLM

from compress.checkpoint.writer import copy_tokenizer
from compress.clock import present_devices
from compress.data import TextSource, evaluation_tokens, load_tokenizer
from compress.evaluating.perplexity import logits_of, perplexity
from compress.measuring import session
from compress.measuring.cold_start import ColdStart, cold
from compress.measuring.latency import Workload, time_side_by_side
from compress.measuring.outputs import Remembered, greedy
from compress.measuring.run import bench
from compress.measuring.runtimes import Generation, open_runner
from compress.novella import FOLDER
from exporters.onnx import parity

FAST = {"devices": ["cpu"], "prefill_length": 16, "contexts": [8], "steps": 3, "repeats": 6, "warmup": 3, "cold_starts": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A compressed tiny model with its recipe, its baseline and a tokenizer."""
    folder = tmp_path_factory.mktemp("bench")
    base = tiny_checkpoint(folder / "base", "qwen2", vocab_size=4096)
    small = tiny_checkpoint(folder / "small", "qwen2", "affine_mlp", vocab_size=4096)
    for each in (base, small):
        copy_tokenizer(FOLDER, each)
    text = folder / "text.txt"
    text.write_text((FOLDER / "text" / "evaluation.txt").read_text()[:8000])
    recipe = {"model": str(base), "calibration": {"text": str(text), "sequences": 4, "length": 16}, "steps": []}
    (small / "recipe.yaml").write_text(json.dumps(recipe))
    rows = [{"module": "model.layers.1.mlp", "kind": "affine_mlp", "relative_error": 0.5}]
    (small / "report.json").write_text(json.dumps({"format": 1, "modules": rows}))
    return small


@pytest.fixture(scope="module")
def texts(checkpoint):
    text = str(checkpoint.parent / "text.txt")
    return {
        "own": TextSource(text=text, length=16, sequences=3),
        "short": TextSource(text=text, length=12, sequences=2),
    }


@pytest.fixture(scope="module")
def results(checkpoint, texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "results.json"
    variants = ["skip-identity", "skip-zero", "skip-mean", "compressed"]
    bench([checkpoint], variants=variants, runtimes=["eager"], texts=texts, batch_sizes=[1, 2], out=out, **FAST)
    return json.loads(out.read_text())


def test_every_variant_has_a_row_with_all_its_measures(results):
    labels = ["baseline", "skip-identity", "skip-zero", "skip-mean", "compressed"]
    assert [row["label"] for row in results["rows"]] == labels
    assert [model["label"] for model in results["models"]] == labels
    for row in results["rows"]:
        assert len(row["prefill"]["samples_ms"]) == 6
        assert [(d["batch"], d["context"]) for d in row["decode"]] == [(1, 8), (2, 8)]
        assert all(d["tokens_per_s"] > 0 and len(d["first_token"]["samples_ms"]) == 6 for d in row["decode"])
        assert row["cache_bytes_per_token"] == 2 * 2 * 2 * 8 * 4  # layers, keys and values, kv heads, head_dim, float32
        assert row["bytes_on_disk"] > 0
        speedup = row["prefill"]["speedup"]
        assert speedup is None if row["label"] == "baseline" else speedup["low"] <= speedup["ratio"] <= speedup["high"]


def test_outputs_are_judged_against_the_baseline(results, checkpoint, texts):
    quality = {row["label"]: row["quality"]["texts"] for row in results["rows"]}
    assert quality["baseline"]["own"]["kl"] == 0
    assert quality["baseline"]["own"]["top1_agreement"] == 1
    assert quality["compressed"]["own"]["kl"] > 0
    tokens = evaluation_tokens(texts["own"], load_tokenizer("novella"))
    expected = perplexity(AutoModelForCausalLM.from_pretrained(checkpoint).eval(), tokens)
    assert quality["compressed"]["own"]["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-6)
    assert quality["compressed"]["short"]["tokens"] == 2 * 11


def test_models_carry_their_account_and_the_rows_of_their_report(results):
    compressed = results["models"][-1]
    assert compressed["layers"] == [1]
    assert compressed["replacements"] == {"affine_mlp": 1}
    assert compressed["modules"][0]["relative_error"] == 0.5
    assert 0 < compressed["account"]["replaced_kept"] < compressed["account"]["model_kept"] < 1
    assert results["models"][0]["account"]["replaced_kept"] is None


def test_results_say_how_they_were_made_but_not_where(results, checkpoint):
    assert results["format"] == 1
    assert {"machine", "versions", "commit", "settings", "texts", "created"} <= results.keys()
    assert results["texts"]["baseline"][0]["windows"] == 3
    assert len(results["texts"]["baseline"][0]["sha256"]) == 64
    text = json.dumps(results)
    assert str(checkpoint.parent) not in text
    assert platform.node() not in text


def _without_times(value):
    """Results without what may differ from run to run."""
    if isinstance(value, dict):
        timed = {"prefill", "decode", "created", "machine", "cold"}
        return {key: _without_times(item) for key, item in value.items() if key not in timed}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def test_a_second_run_differs_in_times_only(checkpoint, texts):
    options = {
        "variants": ["skip-mean", "compressed"],
        "runtimes": ["eager"],
        "texts": texts,
        "work": checkpoint.parent / "work",
    }
    first, second = (bench([checkpoint], **options, **FAST) for _ in range(2))
    assert _without_times(first) == _without_times(second)


class Recording:
    """A runner that writes down what it is asked, and is as slow as told."""

    device = "cpu"

    def __init__(self, name, log):
        self.name, self.log = name, log

    def forward(self, ids):
        self.log.append((self.name, "forward", ids.shape))

    def start(self, ids, steps):
        self.log.append((self.name, "start", ids.shape))
        return Generation(None, None)

    def step(self, generation):
        self.log.append((self.name, "step", None))


def test_variants_take_turns_in_every_measure():
    log = []
    runners = {name: Recording(name, log) for name in "ABC"}
    work = Workload(prefill_length=5, batch_sizes=(2,), contexts=(7,), steps=3, repeats=4, warmup=1)
    ticks = []
    got = time_side_by_side(
        runners, dict.fromkeys("ABC", "A"), {name: [1, 2, 3] for name in "ABC"}, work, lambda: ticks.append(1)
    )
    forwards = "".join(name for name, what, _ in log if what == "forward")
    assert forwards == "ABC" + "ABC" * 4  # one warm-up each, then rounds
    starts = [entry for entry in log if entry[1] == "start"]
    assert "".join(name for name, _, _ in starts) == "ABC" * 5
    assert all(shape == (2, 7) for _, _, shape in starts)
    after_first_start = [what for _, what, _ in log][log.index(starts[0]) :]
    assert after_first_start == ["start", "step", "step", "step"] * 15
    assert len(ticks) == work.rounds() * 3
    assert [len(got[name]["decode"][0]["first_token"]["samples_ms"]) for name in "ABC"] == [4, 4, 4]
    assert got["A"]["prefill"]["speedup"] is None


@pytest.fixture(scope="module")
def onnx_results(checkpoint, texts, tmp_path_factory):
    """Of the baseline alone: that compressed models export is the exporter's to show."""
    out = tmp_path_factory.mktemp("onnx") / "results.json"
    options = {**FAST, "cold_starts": 1}
    with pytest.MonkeyPatch.context() as patch:  # every runtime is judged by its perplexity: nothing else is to be computed
        for name in ("reference", "compare"):
            patch.setattr(parity, name, lambda *_, **__: pytest.fail("compared with torch"))
        return out, bench([checkpoint.parent / "base"], runtimes=["ort-int8", "onnx"], texts=texts, out=out, **options)


def test_onnx_runtimes_are_measured_like_torch(onnx_results, results):
    eager = results["rows"][0]
    onnx, int8 = onnx_results[1]["rows"]
    assert (onnx["runtime"], int8["runtime"]) == ("onnx", "ort-int8")
    nll, exact, rounded = (row["quality"]["texts"]["own"]["nll"] for row in (eager, onnx, int8))
    assert exact == pytest.approx(nll, abs=1e-4)
    assert rounded != pytest.approx(nll, abs=1e-5)
    assert int8["bytes_on_disk"] < onnx["bytes_on_disk"]
    assert onnx["cache_bytes_per_token"] == eager["cache_bytes_per_token"]
    assert 0 < onnx["cold"]["imports_mib"] < onnx["cold"]["steady_mib"] <= onnx["cold"]["peak_mib"]
    assert onnx["cold"]["load_s"] < onnx["cold"]["cold_start_s"]


def test_exported_graphs_are_used_again(onnx_results, checkpoint, texts):
    out, _ = onnx_results
    (graph,) = (out.parent / "bench-work" / "onnx").glob("*/model.onnx")
    written = graph.stat().st_mtime_ns
    bench([checkpoint.parent / "base"], runtimes=["onnx"], texts=texts, out=out, **FAST)
    assert graph.stat().st_mtime_ns == written


@pytest.mark.parametrize("runtime", ["eager", "onnx"])
def test_runners_generate_what_the_model_generates(checkpoint, runtime, onnx_results):
    base = checkpoint.parent / "base"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    prompt = list(range(3, 12))
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=6, min_new_tokens=6, do_sample=False)[0, 9:].tolist()
    (graph,) = (onnx_results[0].parent / "bench-work" / "onnx").iterdir()
    runner = open_runner(base if runtime == "eager" else graph, runtime, "cpu", "float32", 1)
    assert greedy(runner, prompt, 6) == expected
    ids = torch.tensor([prompt])
    torch.testing.assert_close(logits_of(runner.scorer(), ids), logits_of(model, ids), atol=1e-4, rtol=1e-4)


def test_memory_and_cold_start_of_torch_are_its_own_process(checkpoint):
    got = cold(ColdStart(str(checkpoint), "eager", "cpu", "float32", 1, 8))
    assert 100 < got["imports_mib"] < got["steady_mib"] <= got["peak_mib"]
    assert got["load_s"] < got["cold_start_s"]


def test_an_onnx_process_never_imports_torch():
    code = "import sys, compress.measuring.cold_start, exporters.onnx.runtime\n"
    code += "print('torch' in sys.modules, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_a_failing_process_is_reported_with_its_reason(tmp_path):
    with pytest.raises(RuntimeError, match=r"onnx on cpu failed in a process of its own: .*no model\.onnx"):
        cold(ColdStart(str(tmp_path), "onnx", "cpu", "float32", 1, 8))


def test_a_failing_cold_start_costs_its_own_numbers_only(checkpoint, texts, monkeypatch):
    def broken(job, starts):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(session, "cold", broken)
    got = bench([checkpoint], variants=["baseline"], runtimes=["eager"], texts=texts, **{**FAST, "cold_starts": 1})
    assert len(got["rows"]) == 1
    assert got["skipped"][0]["reason"] == "cold start of baseline: out of memory"


def test_a_runtime_that_cannot_work_is_skipped_with_its_reason(checkpoint, texts, monkeypatch):
    monkeypatch.setattr(session, "obstacle", lambda runtime, device: "not today" if runtime == "onnx" else None)
    got = bench([checkpoint], variants=["compressed"], texts=texts, **FAST)
    assert {row["runtime"] for row in got["rows"]} == {"eager"}
    assert got["skipped"] == [{"runtime": "onnx", "device": "cpu", "reason": "not today"}]
    with pytest.raises(RuntimeError, match="nothing could be measured: onnx on cpu: not today"):
        bench([checkpoint], variants=["compressed"], runtimes=["onnx"], texts=texts, **FAST)


LONG = TextSource(text="novella", length=200, sequences=1)
ABSENT = next(name for name in ("mps", "cuda") if name not in present_devices())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtimes": ["tensorrt"]}, "unknown runtime 'tensorrt'; allowed: eager, compile, onnx, ort-int8"),
        ({"variants": ["skip-all"]}, "unknown variant 'skip-all'"),
        ({"devices": [ABSENT]}, f"no device '{ABSENT}' here; present: cpu"),
        ({"dtype": "int3"}, "unknown dtype 'int3'; allowed: auto"),
        ({"contexts": [126]}, "baseline has 128 positions"),
        ({"repeats": 0}, "repeats is 0; give 1 or more"),
        ({"warmup": 0}, "warmup is 0; give 1 or more"),
        ({"batch_sizes": []}, "batch_sizes is"),
        ({"threads": 0}, "threads is 0"),
        ({"runtimes": []}, "nothing to measure"),
        ({"texts": {"long": LONG}}, "text 'long': windows of 200 tokens, and the model has 128 positions"),
        ({"prompt": ""}, "the prompt is empty"),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(checkpoint, texts, options, message, monkeypatch):
    monkeypatch.setattr(session, "open_runner", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=message):
        bench([checkpoint], **{"texts": texts, **FAST, **options})


def test_remembered_logits_are_computed_once_and_bounded(monkeypatch):
    calls = []

    def model(ids):
        calls.append(ids)
        return torch.zeros(*ids.shape, 4)

    windows = [torch.full((1, 8), i) for i in range(3)]
    monkeypatch.setattr("compress.measuring.outputs.REMEMBERED_BYTES", 2 * 8 * 4 * 4)
    remembered = Remembered(model)
    for _ in range(3):
        for ids in windows:
            assert remembered(ids).shape == (1, 8, 4)
    assert len(calls) == 2 + 3  # two batches fit, the third is computed each time
