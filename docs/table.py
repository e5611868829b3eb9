"""One file of measured numbers, docs/numbers/NAME.json, and the Markdown table it gives.

    values    {row: {column: cell}}; a cell is a number, text, null, or named numbers such as {"perplexity": 46.44, "share": 1}
    figures   {name: number}, what the caption and the headers use, e.g. "dense {dense:.2f}"
    source    {command, machine, commit, date, note}, null where not recorded
    caption, label, format, columns, rows: the layout, see `Numbers`

A script that measures a table again replaces `values`, `figures` and `source`, and leaves the layout as it is. Formats are
those of `str.format` over a cell's names ("value" for a bare number); of several, the first whose names are all there is used.
"""

from __future__ import annotations

import json
import re
import string
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

WIDTH = 128  # of the lines of a caption

Number = int | float  # in this order: a whole number stays one
Cell = Number | str | dict[str, Number] | None
Format = str | list[str]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Strict):
    """Where numbers come from; null is "not recorded"."""

    command: str | list[str]
    machine: str | None = None
    commit: str | None = None
    date: str | None = None
    note: str = ""


class Column(_Strict):
    """A column: `key` in each row's values, its header, and its own format where the table's is not used."""

    key: str
    head: str
    format: Format | None = None


class Row(_Strict):
    """A row: `key` in `values`, none for a heading; the format of all its cells, or of some; columns set in bold."""

    label: str
    key: str | None = None
    format: str | dict[str, str] | None = None
    bold: list[str] = []


class Numbers(_Strict):
    """One file of docs/numbers."""

    caption: str = ""
    source: Source
    figures: dict[str, Number] = {}
    label: str = ""  # header of the first column
    format: Format = "{value}"
    columns: list[Column]
    rows: list[Row]
    values: dict[str, dict[str, Cell]]

    def table(self) -> str:
        """Caption and table. Raises ValueError where the layout names what is not measured."""
        lines = [[figures(head, self.figures) for head in (self.label, *(column.head for column in self.columns))]]
        lines += [
            [figures(row.label, self.figures), *(self._cell(row, column) for column in self.columns)] for row in self.rows
        ]
        text = ["| " + " | ".join(part.replace("|", r"\|") for part in line) + " |" for line in lines]
        text = [re.sub(r"\|  (?=\|)", "| ", line) for line in text]  # an empty cell
        text.insert(1, "|" + "---|" * (len(self.columns) + 1))
        caption = textwrap.fill(figures(self.caption, self.figures), WIDTH, break_long_words=False, break_on_hyphens=False)
        return "\n\n".join(filter(None, [caption, "\n".join(text)]))

    def provenance(self) -> str:
        """How to measure the table again, and where it was measured."""
        where = [self.source.machine, self.source.commit and f"commit {self.source.commit}", self.source.date]
        commands = [self.source.command] if isinstance(self.source.command, str) else self.source.command
        by = ", ".join(f"`{command}`" for command in commands)
        return (
            f"Measured by {by}: {', '.join(filter(None, where)) or 'machine and date not recorded'}. {self.source.note}".strip()
        )

    def _cell(self, row: Row, column: Column) -> str:
        if row.key is None:
            return ""
        if row.key not in self.values:
            raise ValueError(f"row {row.label!r}: no values {row.key!r}")
        value = self.values[row.key].get(column.key)
        own = row.format.get(column.key) if isinstance(row.format, dict) else row.format
        text = cell(value, own or column.format or self.format)
        return f"**{text}**" if column.key in row.bold else text


class _Figures(string.Formatter):
    """`str.format`, with numbers as a reader wants them: −0.5, 16 %, 1.5e-5."""

    def format_field(self, value: Any, format_spec: str) -> str:
        text = super().format_field(value, format_spec)
        if isinstance(value, int | float):
            if format_spec.endswith("e"):
                mantissa, exponent = text.split("e")
                text = f"{mantissa}e{int(exponent)}"
            elif format_spec.endswith("%"):
                text = f"{text[:-1]} %"
            text = re.sub(r"^-", "−", text)
        return text


def figures(text: str, values: Mapping[str, Any]) -> str:
    """`text` with its {name:format} fields filled. Raises ValueError for a name that is not there."""
    try:
        return _Figures().vformat(text, (), values)
    except (KeyError, IndexError) as error:
        raise ValueError(f"{text!r}: no figure {error}; there are {', '.join(values) or 'none'}") from None


def cell(value: Cell, formats: Format) -> str:
    """One cell as text: nothing for null, text as it is, numbers by the first format whose names are all there."""
    if value is None or isinstance(value, str):
        return value or ""
    named = value if isinstance(value, dict) else {"value": value}
    for text in [formats] if isinstance(formats, str) else formats:
        if {name for _, name, _, _ in string.Formatter().parse(text) if name} <= named.keys():
            return figures(text, named)
    raise ValueError(f"no format of {formats} fits a cell of {', '.join(named)}")


def read(file: Path) -> Numbers:
    """Raises ValueError naming the file and what is wrong with it."""
    try:
        return Numbers.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise ValueError(f"{file.name}: {wrong}") from None
