"""A results.json made by hand: three variants in two runtimes, one comparison of each outcome."""

from __future__ import annotations

from typing import Any

from compress.clock import Speedup, summary_ms

HOSTILE = '<script>alert("x")</script> | [bold]'
SPEEDUPS = {
    "faster": Speedup(1.4, 1.3, 1.5).to_json(),
    "slower": Speedup(0.7, 0.6, 0.8).to_json(),
    "none": Speedup(1.01, 0.97, 1.04).to_json(),
    "few": Speedup(1.2, None, None).to_json(),
}


def made_results() -> dict[str, Any]:
    """Fresh plain data, as `json.loads` would give it."""
    labels = {"baseline": "baseline", "skip-zero": "skip-zero", "compressed": HOSTILE}
    return {
        "format": 1,
        "created": "2026-01-02T03:04:05+00:00",
        "machine": {
            "processor": "Test CPU",
            "usable_cores": 2,
            "memory_gib": 4.0,
            "load_average": [0.5, 0.5, 0.5],
            "devices": {"cpu": "Test CPU"},
        },
        "versions": {"python": "3.12", "torch": "2.13"},
        "commit": None,
        "settings": {
            "runtimes": ["eager", "onnx"],
            "batch_sizes": [1, 4],
            "contexts": [64],
            "prefill_length": 128,
            "repeats": 20,
            "threads": 1,
            "dtype": "auto",
        },
        "texts": {
            "baseline": [
                {"name": name, "windows": 3, "length": 32, "sha256": "a" * 64, "source": {"text": "novella"}}
                for name in ("own", "other")
            ]
        },
        "models": [_model(label, kind) for kind, label in labels.items()],
        "rows": [_row(labels[kind], kind, runtime) for runtime in ("eager", "onnx") for kind in labels],
        "generation": {
            "baseline": {
                "prompt": "Once <b>upon</b>",
                "tokens": 5,
                "continuations": {"baseline": " a time there", "skip-zero": "", HOSTILE: " a tide <i>rose"},
            }
        },
        "skipped": [{"runtime": "ort-int8", "device": "cpu", "reason": "not here & not now"}],
    }


def _model(label: str, kind: str) -> dict[str, Any]:
    kept = {"baseline": 1.0, "skip-zero": 0.6, "compressed": 0.8}[kind]
    errors = [("q_proj", 0, 0.1), ("q_proj", 1, 0.3), ("down_proj", 1, 0.2)] if kind == "compressed" else []
    return {
        "label": label,
        "name": {"baseline": "base", "compressed": "small"}.get(kind),
        "kind": kind,
        "baseline": "baseline",
        "layers": [0, 1] if kind != "baseline" else [],
        "account": {
            "parameters": int(1e6 * kept),
            "weight_bytes": int(4 * 2**20 * kept),
            "multiply_adds": {"total": int(2e6 * kept)},
            "replaced_kept": None if kind == "baseline" else kept - 0.1,
            "model_kept": kept,
        },
        "modules": [
            {"module": f"model.layers.{layer}.mlp.{name}", "layer": layer, "relative_error": error}
            for name, layer, error in errors
        ],
    }


def _row(label: str, kind: str, runtime: str) -> dict[str, Any]:
    slowness = {"baseline": 2.0, "skip-zero": 1.0, "compressed": 1.5}[kind] * (2 if runtime == "eager" else 1)
    perplexity = {"baseline": 10.0, "skip-zero": 500.0, "compressed": 12.0}[kind]
    verdict = {"baseline": None, "skip-zero": SPEEDUPS["faster"], "compressed": SPEEDUPS["none"]}[kind]
    texts = {
        name: {"perplexity": perplexity * scale, "nll": 2.0, "kl": perplexity / 100, "top1_agreement": 0.5, "tokens": 90}
        for name, scale in (("own", 1.0), ("other", 2.0))
    }
    times = summary_ms([slowness * (1 + 0.01 * i) for i in range(20)])
    return {
        "label": label,
        "kind": kind,
        "baseline": "baseline",
        "runtime": runtime,
        "device": "cpu",
        "dtype": "float32",
        "bytes_on_disk": 3 * 2**20,
        "cache_bytes_per_token": 1234,
        "prefill": {**times, "length": 128, "tokens_per_s": 128e3 / times["p50_ms"], "speedup": verdict},
        "decode": [
            {
                "batch": batch,
                "context": 64,
                "steps": 16,
                "tokens_per_s": 1e3 * batch / slowness,
                "step": times,
                "speedup": verdict,
                "first_token": {**times, "speedup": verdict},
            }
            for batch in (1, 4)
        ],
        "quality": {"runtime": runtime, "device": "cpu", "dtype": "float32", "texts": texts},
        "cold": {"peak_mib": 90.0, "imports_mib": 50.0, "steady_mib": 80.0, "cold_start_s": 1.25, "load_s": 0.5},
    }
