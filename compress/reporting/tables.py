"""The tables of a benchmark in reading order: which entries of results.json each shows, and in which columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.reporting.columns import (
    Column,
    Entry,
    decode_columns,
    footprint_columns,
    quality_columns,
    size_columns,
    speed_columns,
)


@dataclass(frozen=True)
class Table:
    """One table: its title, columns, and the entries that are its rows."""

    title: str
    columns: tuple[Column, ...]
    entries: Sequence[Entry]
    is_detail: bool = False  # left out where there is little room

    def texts(self, with_details: bool = True) -> list[tuple[str, ...]]:
        """The rows as text, a tuple per entry and a text per column; without details, their columns are left out."""
        rows: list[tuple[str, ...]] = []
        group = None
        for entry in self.entries:
            texts = {column: column.text(entry) for column in self.columns if with_details or not column.is_detail}
            named = next((text for column, text in texts.items() if column.is_group), None)
            # A group's name stands in its first row only, so that the eye finds where the next one begins.
            rows.append(tuple("" if column.is_group and text == group else text for column, text in texts.items()))
            group = named
        return rows


def tables(results: Entry) -> list[Table]:
    """All tables of a results.json, in reading order."""
    settings, rows = results["settings"], results["rows"]
    out = [
        Table("What remains", size_columns(results), size_entries(results)),
        Table("What it does to the outputs", quality_columns(results), quality_entries(results)),
        Table("How fast it is", speed_columns(results), rows),
    ]
    # With one batch size and one context the table above already says all of it.
    if len(settings["batch_sizes"]) * len(settings["contexts"]) > 1:
        out.append(Table("Decoding by batch size and context", decode_columns(), decode_entries(rows), is_detail=True))
    return [*out, Table("What it takes", footprint_columns(), rows)]


def size_entries(results: Entry) -> list[Entry]:
    """The models, each with the cache and the quality of its first row: torch’s, where torch was measured."""
    first = {row["label"]: row for row in reversed(results["rows"])}  # of equal keys a dict keeps the last
    more = ("quality", "cache_bytes_per_token")
    return [{**model, **{key: first[model["label"]][key] for key in more}} for model in results["models"]]


def quality_entries(results: Entry) -> list[Entry]:
    """One row of the results per variant and runtime that was judged."""
    # Runtimes that share a judge share its numbers. Twice reversed: the first row of each, in the order of the rows.
    return list({(row["label"], row["quality"]["runtime"]): row for row in reversed(results["rows"])}.values())[::-1]


def decode_entries(rows: Sequence[Entry]) -> list[Entry]:
    """One entry per row of the results, batch size and context; the variants of each pair stand together."""
    flat = [{**{k: row[k] for k in ("label", "runtime", "device")}, **measures} for row in rows for measures in row["decode"]]
    places = list(dict.fromkeys((entry["runtime"], entry["device"]) for entry in flat))
    # By place of first appearance, not by name: this table keeps the order of those before it.
    return sorted(flat, key=lambda e: (places.index((e["runtime"], e["device"])), e["batch"], e["context"]))
