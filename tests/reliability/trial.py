"""One trial: a command is killed, looked at, run again, and compared with a run that nobody disturbed."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from compress.checkpoint.manifest import FILE
from reliability.commands import Command, model
from reliability.processes import events, killed_after, killed_at

# Files of the user's, planted before and after the first run; in the output, its subfolders and the work beside it.
FOREIGN = ("out/notes.txt", "out/mine/model.safetensors", "out/bench/table.csv", "out.work/remarks.txt", "notes.txt")
# What is measured anew each time: seconds, dates, and what hangs on them.
TIMED = ("seconds", "created", "latency", "prefill", "decode", "first_token", "machine", "commit")


class Trial:
    """A command with a template of what it finds, and the outcome of an undisturbed run."""

    def __init__(self, command: Command, folder: Path) -> None:
        self.command, self.root, self._template, self.log = command, folder / "run", folder / "template", folder / "log"
        self.root.mkdir(parents=True)
        # In a child, as everything that runs.
        events(lambda: (model(self.root), command.before(self.root)), self.log)
        for name in FOREIGN:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(f"mine: {name}")
        self.root.rename(self._template)
        self.before = self._fresh()
        self.events = events(partial(command.act, self.root), self.log)
        self.after = contents(self.root)
        self._check_foreign()

    def _fresh(self) -> dict[str, str]:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self._template, self.root, symlinks=True)
        return contents(self.root)

    def kill_at(self, *points: int) -> bool:
        """Kill at these events, one run after the other, then let one finish; False where it was done before the first."""
        self._fresh()
        died = [killed_at(partial(self.command.act, self.root), point, self.log) for point in points if self._is_sound()]
        self._finish(f"killed at {[self.events[p] for p in points if p < len(self.events)]}")
        return died[0]

    def kill_after(self, *seconds: float) -> bool:
        """The same by the clock."""
        self._fresh()
        died = [killed_after(partial(self.command.act, self.root), each, self.log) for each in seconds if self._is_sound()]
        self._finish(f"killed after {seconds} s")
        return died[0]

    def _finish(self, what: str) -> None:
        self._check_whole(what)
        done = self._finished_work()
        # A run that is let go to its end: no event of it has a number this large.
        assert not killed_at(partial(self.command.act, self.root), 10**9, self.log)
        lost = {name for name, stat in self._finished_work().items() if name in done and done[name] != stat}
        assert not lost, f"{what}: done again: {sorted(lost)}"
        now = contents(self.root)
        differ = sorted(name for name in now.keys() | self.after.keys() if now.get(name) != self.after.get(name))
        assert not differ, f"{what}: not as an undisturbed run leaves it: {differ}"
        self._check_foreign()

    def _is_sound(self) -> bool:
        """Looked at between kills, too."""
        self._check_foreign()
        return True

    def _check_foreign(self) -> None:
        for name in FOREIGN:
            assert (self.root / name).read_text() == f"mine: {name}", name

    def _check_whole(self, what: str) -> None:
        """A checkpoint that is replaced is the old or the new one right after the kill, before anything is run again."""
        if self.command.replaces:
            now, old, new = (_checkpoint(files) for files in (contents(self.root), self.before, self.after))
            assert now in (old, new), f"{what}: neither the old nor the new checkpoint"

    def _finished_work(self) -> dict[str, tuple[int, int]]:
        """Finished units, and finished searches of units that are not."""
        kept = [*self.root.glob("out.work/units/*.safetensors"), *self.root.glob("out.work/searches/*/*.json")]
        return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept}


def _checkpoint(files: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in files.items() if name.startswith("out/") and name.count("/") == 1}


def contents(root: Path) -> dict[str, str]:
    """{relative name: digest of the content} of all that a command leaves for its user, apart from what is timed."""
    out = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        # Manifests count how often; work holds timings, and parts that the next run will sweep.
        if path.is_dir() or path.name == FILE or name.startswith("out.work/"):
            continue
        timed = path.name in ("results.json", "report.json", "export.json")
        text = json.dumps(untimed(json.loads(path.read_text()))).encode() if timed else path.read_bytes()
        # The pictures and pages of a report are drawn from times that are the same here: results.json is not measured anew.
        out[name] = hashlib.sha256(text).hexdigest()
    return out


def untimed(value: Any) -> Any:
    """JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {key: untimed(each) for key, each in value.items() if key not in TIMED}
    return [untimed(each) for each in value] if isinstance(value, list) else value
