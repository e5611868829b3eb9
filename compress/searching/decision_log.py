"""A log of decisions, one JSON line each, behind a header of what was asked: an interrupted search continues where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.checkpoint import disk
from compress.checkpoint.files import write_text
from compress.checkpoint.lock import locked
from compress.checkpoint.manifest import Manifest
from compress.checkpoint.swap import recover
from compress.checkpoint.work import open_work
from compress.fitting.job import Job


@contextmanager
def search_folder(job: Job, part: str, fresh: bool, log: str, *results: str) -> Iterator[Manifest]:
    """The output of a search, locked, with its log claimed as ours; emptied of an earlier one's log and work where `fresh`.

    Raises FileExistsError where a file that compress did not write is in the way, RuntimeError where another run is on it.
    """
    output = job.recipe.output
    with locked(output):
        recover(output)
        folder = Manifest(output, part)
        folder.check([log, *results])
        open_work(output, job.work, fresh)
        if fresh:
            folder.remove(log)
        folder.claim(log)
        yield folder


def open_log(log: Path, header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The decisions of an interrupted search; a line that was cut off is dropped. Starts the file where there is none.

    Raises ValueError where the log's header is another one.
    """
    lines = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            # Only the last line can be cut off, by the end of a process that was writing it.
            break
    if lines and lines[0] != header:
        changed = [key for key in header if lines[0].get(key) != header[key]]
        raise ValueError(f"{log} is of another search (not the same {', '.join(changed)}); give --fresh or another output")
    # Written anew, without a line that was cut off, so that the next one starts a line of its own.
    write_text(log, "".join(json.dumps(line) + "\n" for line in (lines or [header])))
    return lines[1:]


def append(log: Path, line: Mapping[str, Any]) -> None:
    """Add a decision; it is on disk when this returns. Raises ValueError for numbers that are not finite."""
    disk.append(log, json.dumps(line, allow_nan=False) + "\n")
