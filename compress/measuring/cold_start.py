"""Cold start and memory of one model, measured in a fresh process: in one that has run anything else neither has a meaning.

The parent calls `cold`; the child (`python -m compress.measuring.cold_start`) imports only what its runtime needs, loads the
model, generates, and prints one line of JSON.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.child import command as child_command
from compress.clock import device_mib, resident_mib
from compress.measuring.runtimes import Runtime, open_runner

STEPS = 4  # tokens after the first: enough for every buffer of a generation to exist


@dataclass(frozen=True)
class ColdStart:
    """What the child does: read a prompt of `length` tokens and generate."""

    folder: str
    runtime: Runtime
    device: str
    dtype: str
    threads: int
    length: int


def cold(job: ColdStart, starts: int = 1) -> dict[str, Any]:
    """Memory in MiB and cold start in seconds, the median of `starts` processes, the files being in the page cache.

    "cold_start_s" runs from the start of the process to the first token, "load_s" is the loading in it. "imports_mib" is the
    resident memory once the libraries are imported, "steady_mib" with the model after a generation, "peak_mib" the most
    there ever was; on cuda and mps "device_steady_mib" and "device_peak_mib" are the allocator's.
    Raises RuntimeError with the child's last line where it fails.
    """
    runs = [_spawn(job) for _ in range(max(1, starts))]
    runs.sort(key=lambda run: run["cold_start_s"])
    return {**runs[len(runs) // 2], "starts": len(runs)}


def _spawn(job: ColdStart) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "PYTHONSAFEPATH": "1"}
    command = child_command("compress.measuring.cold_start", json.dumps(asdict(job)), repr(time.time()))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"{job.runtime} on {job.device} failed in a process of its own: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def child(job: ColdStart, started: float) -> dict[str, Any]:
    """Import, load, generate; what the parent gets back."""
    import numpy as np

    _import_libraries(job)
    imports_mib = resident_mib()[0]
    loading = time.perf_counter()
    runner = open_runner(Path(job.folder), job.runtime, job.device, job.dtype, job.threads)
    load_s = time.perf_counter() - loading
    ids = np.arange(job.length, dtype=np.int64)[None] % 64
    generation = runner.start(ids, STEPS)
    cold_start_s = time.time() - started
    for _ in range(STEPS):
        runner.step(generation)
    gc.collect()
    steady_mib, peak_mib = resident_mib()
    out = {
        "cold_start_s": cold_start_s,
        "load_s": load_s,
        "imports_mib": imports_mib,
        "steady_mib": steady_mib,
        "peak_mib": max(peak_mib, steady_mib),
    }
    on_device = device_mib(job.device) if job.device != "cpu" else None
    if on_device is not None:
        out["device_steady_mib"], out["device_peak_mib"] = on_device
    return out


def _import_libraries(job: ColdStart) -> None:
    """Everything whose memory is not the model's: the runtime, and in torch the code of the architecture."""
    if job.runtime in ("onnx", "ort-int8"):
        import onnxruntime  # noqa: F401

        return
    from transformers import AutoConfig, AutoModelForCausalLM

    import compress.loading.quantizer  # noqa: F401

    AutoModelForCausalLM._model_mapping[type(AutoConfig.from_pretrained(job.folder))]


if __name__ == "__main__":
    print(json.dumps(child(ColdStart(**json.loads(sys.argv[1])), float(sys.argv[2]))))
