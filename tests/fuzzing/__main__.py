"""The long form, in pieces: each finished piece is a line of the journal, and a run goes on behind the last one.

    cd tests && python -m fuzzing [--cases N] [--minutes M]

Writes the counts into the values of docs/numbers/fuzzing.json (or --summary).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzzing.run import run

PIECE = 500
SUMMARY = Path(__file__).parents[2] / "docs" / "numbers" / "fuzzing.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--journal", type=Path, default=Path("fuzzing.jsonl"))
    parser.add_argument("--minutes", type=float, default=10.0, help="stop after the piece that is running then")
    parser.add_argument("--summary", type=Path, default=SUMMARY)
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.journal.read_text().splitlines()] if args.journal.is_file() else []
    first, started = sum(line["cases"] for line in lines), time.time()
    with TemporaryDirectory() as folder, args.journal.open("a") as journal:
        while first < args.cases and time.time() - started < 60 * args.minutes:
            piece = run(first, min(PIECE, args.cases - first), Path(folder)).to_json()
            lines.append(piece)
            journal.write(json.dumps(piece) + "\n")
            journal.flush()
            first += piece["cases"]
    bad = {name: [text for line in lines for text in line[name]] for name in ("executed", "slow", "large", "tracebacks")}
    total = Counter[str]()
    for line in lines:
        total.update(line["by_target"])
    most = {name: max(line[name] for line in lines) for name in ("slowest_s", "peak_mib")}
    print(f"{first:,} of {args.cases:,} cases {dict(total)}; {sum(line['refused'] for line in lines):,} refused")
    print(f"slowest {most['slowest_s']:.2f} s, most {most['peak_mib']:.0f} MiB")
    for name, texts in bad.items():
        print(f"{name}: {len(texts)}", *texts[:20], sep="\n  ")
    summary = json.loads(args.summary.read_text(encoding="utf-8"))
    summary["values"] = {"all": {"cases": first, **{name: len(texts) for name, texts in bad.items()}, **most}}
    args.summary.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
