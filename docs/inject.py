"""Write the measured numbers and the map of rooms into README.md, CONTRIBUTING.md and docs/: no table is typed by hand.

    python docs/inject.py            # make numbers
    python docs/inject.py --check    # exit code 1, naming the files that are not what the JSON gives

Markers, each on a line of its own, with everything up to `<!-- end -->` replaced:

    <!-- numbers: NAME -->     the caption and table of docs/numbers/NAME.json
    <!-- source: NAME -->      the command that measures it again, and where it was measured
    <!-- rooms: map -->        every room in a line; `table` instead of `map` adds what goes in and what comes out

and inside a line, but not at its start, where Markdown would end the paragraph:

    <!-- n: NAME.row.column.field:.2f -->46.44<!-- /n -->      one figure; the format may be left out

What a JSON holds, and how a benchmark writes it, is in docs/table.py; the rooms describe themselves, see docs/rooms.py.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rooms import Room, rooms
from table import Numbers, figures, read

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^<!-- (numbers|source|rooms): (\w+) -->\n(.*?)^<!-- end -->$", re.DOTALL | re.MULTILINE)
OPENING = re.compile(r"^<!-- (?:numbers|source|rooms): ", re.MULTILINE)
FIGURE = re.compile(r"<!-- n: (\w+)((?:\.\w+)+)(?::(\S+))? -->(.*?)<!-- /n -->", re.DOTALL)


def inject(text: str, numbers: Mapping[str, Numbers], house: list[Room]) -> str:
    """`text` with every marked part written anew. Raises ValueError for a marker that is open, misplaced or unknown."""

    def known(name: str) -> Numbers:
        if name not in numbers:
            raise ValueError(f"docs/numbers/{name}.json is not there; there are {', '.join(numbers)}")
        return numbers[name]

    def block(match: re.Match[str]) -> str:
        what, name, old = match.groups()
        if OPENING.search(old):
            raise ValueError(f"<!-- {what}: {name} --> has no <!-- end --> before the next marker")
        if what == "rooms":
            if name not in LAYOUTS:
                raise ValueError(f"rooms: {name} is no layout; there are {', '.join(LAYOUTS)}")
            body = LAYOUTS[name](house)
        else:
            body = known(name).table() if what == "numbers" else known(name).provenance()
        return f"<!-- {what}: {name} -->\n\n{body}\n\n<!-- end -->"

    def figure(match: re.Match[str]) -> str:
        name, path, spec, _ = match.groups()
        table = known(name)
        value: Any = {**table.values, **table.figures}
        for key in path[1:].split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise ValueError(f"<!-- n: {name}{path} -->: {name}.json has no {key!r} there")
            value = value[key]
        shown = figures(f"{{value:{spec or ''}}}", {"value": value})
        return f"<!-- n: {name}{path}{':' + spec if spec else ''} -->{shown}<!-- /n -->"

    if re.search(r"^\s*<!-- n: ", text, re.MULTILINE):
        raise ValueError("a figure's marker starts a line, which ends the paragraph; put a word before it")
    if len(OPENING.findall(text)) != len(BLOCK.findall(text)):
        raise ValueError("a marker is without its <!-- end --> on a line of its own")
    if len(re.findall(r"<!-- n: ", text)) != len(FIGURE.findall(text)):
        raise ValueError("a figure is not of the form <!-- n: file.key:format -->…<!-- /n -->")
    return FIGURE.sub(figure, BLOCK.sub(block, text))


def room_map(house: list[Room]) -> str:
    """Two columns."""
    return "\n".join(["| room | |", "|---|---|", *(f"| `{r.path}/` | {r.what} |" for r in house)])


def room_table(house: list[Room]) -> str:
    """Three columns: the room and what it is, what goes in, what comes out."""
    rows = (f"| `{r.path}/` | {r.what} | {r.takes} | {r.gives} |" for r in house)
    return "\n".join(["| room | what it is | in | out |", "|---|---|---|---|", *rows])


LAYOUTS = {"map": room_map, "table": room_table}


def pages(root: Path) -> list[Path]:
    """Every Markdown file that may hold markers."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


def run(root: Path, *, check: bool = False) -> list[Path]:
    """Write, or with `check` only compare, all pages; returns those that differed."""
    numbers = {file.stem: read(file) for file in sorted((root / "docs" / "numbers").glob("*.json"))}
    house = rooms(root)
    changed = []
    for page in pages(root):
        old = page.read_text(encoding="utf-8")
        try:
            new = inject(old, numbers, house)
        except ValueError as error:
            raise ValueError(f"{page.relative_to(root)}: {error}") from None
        if new != old:
            changed.append(page)
            if not check:
                page.write_text(new, encoding="utf-8")
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description="Numbers and rooms into README.md and docs/.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page is not what the JSON gives")
    check = parser.parse_args().check
    try:
        changed = run(ROOT, check=check)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for page in changed:
        print(f"{page.relative_to(ROOT)}: " + ("not what docs/numbers gives; run make numbers" if check else "written"))
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
