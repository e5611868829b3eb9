"""What starting costs, in milliseconds over a bare interpreter: `import compress` and `compress --help`, interleaved.

python tests/benchmarks/startup.py --repeats 20
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

STARTS = {
    "python": ["-c", "pass"],
    "import compress": ["-c", "import compress"],
    "compress --help": ["-m", "compress", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    taken: dict[str, list[float]] = {name: [] for name in STARTS}
    # One of each in turn, so that a busy second of the machine falls on all of them.
    for _ in range(repeats):
        for name, arguments in STARTS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            taken[name].append(1000 * (time.perf_counter() - began))
    bare = statistics.median(taken["python"])
    for name, times in taken.items():
        over = statistics.median(times) - bare
        print(f"{name:16s} median {statistics.median(times):7.1f} ms, least {min(times):7.1f}, over python {over:7.1f}")


if __name__ == "__main__":
    main()
