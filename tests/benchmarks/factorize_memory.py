"""Peak memory of factoring one matrix of 70 B-class shapes, above the imports and the weight itself.

    python tests/benchmarks/factorize_memory.py [--out 8192] [--in 28672] [--metric]

`--metric` adds an input second moment, in × in float64 (0.5 GB at 8,192, 6.6 GB at 28,672).
"""

from __future__ import annotations

import argparse
import time

import torch

from compress.clock import resident_mib
from compress.numerics.linalg import factorize


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=int, default=8192)
    parser.add_argument("--in", type=int, default=28672, dest="inputs")
    parser.add_argument("--metric", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    _, imports = resident_mib()
    weight = torch.randn(options.out, options.inputs, dtype=torch.bfloat16)
    metric = None
    if options.metric:
        metric = torch.eye(options.inputs, dtype=torch.float64)
        metric += 0.5 * torch.ones(options.inputs, dtype=torch.float64).outer(torch.ones(options.inputs, dtype=torch.float64))
    started = time.perf_counter()
    result = factorize(weight, metric)
    seconds = time.perf_counter() - started
    _, peak = resident_mib()
    gib = (peak - imports) / 1024
    print(
        f"{options.out} × {options.inputs}{' with an input metric' if options.metric else ''}: {result.max_rank} components, "
        f"{gib:.2f} GiB above the imports, {seconds:.0f} s on {torch.get_num_threads()} thread(s)"
    )


if __name__ == "__main__":
    main()
