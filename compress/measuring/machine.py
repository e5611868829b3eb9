"""Where a benchmark was measured: hardware, library versions, commit. Nothing that names the user or the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compress.clock import present_devices

LIBRARIES = ("compress", "torch", "transformers", "onnxruntime", "onnx", "numpy", "safetensors")


def machine() -> dict[str, Any]:
    """Processor, cores, memory and the accelerators torch sees."""
    import psutil

    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "logical_cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "devices": {name: _device(name) for name in present_devices()},
    }


def versions() -> dict[str, str]:
    """Of Python and the libraries that decide what is measured; those not installed are left out."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the source checkout this package runs from, "+" appended where files differ; None for an installed one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + "+" * bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    """The processor's name as the system knows it; platform.processor() is empty on most Linux systems."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return names[0] if names else platform.machine()
    if sys.platform == "darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        return done.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def _device(name: str) -> str:
    if name == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return "Apple GPU" if name == "mps" else _processor()
