"""One self-contained HTML page of a benchmark: style and pictures inside, nothing fetched, for light and dark screens."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from compress.reporting.columns import Entry
from compress.reporting.sentences import compared, measured_how, summary, title
from compress.reporting.tables import tables

TEMPLATE = "page.html.j2"


@dataclass(frozen=True)
class Picture:
    """A plot in both dresses, and the section of the page it belongs to."""

    section: str
    caption: str
    light: bytes  # PNG
    dark: bytes


@dataclass(frozen=True)
class Continuation:
    """What a variant made of the prompt, split where it leaves the baseline's text."""

    label: str
    same: str
    rest: str


def page(results: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The page of one results.json; pictures are drawn from it beforehand."""
    # What remains and what it costs in quality come before the pictures, which are about both; the details come after.
    size, quality, *others = tables(results)
    # Escaping is for every value: labels, texts and machine names are not ours. A misspelt name must not print as nothing.
    environment = Environment(
        loader=PackageLoader("compress.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data"] = _data
    return environment.get_template(TEMPLATE).render(
        title=title(results),
        created=results["created"],
        machine=_machine(results),
        summary=summary(results),
        compared=compared(results),
        tables_before=[size, quality],
        pictures={name: [p for p in pictures if p.section == name] for name in dict.fromkeys(p.section for p in pictures)},
        tables_after=others,
        generations=[(generation, _continuations(base, generation)) for base, generation in results["generation"].items()],
        measured_how=measured_how(results),
    )


def _machine(results: Entry) -> str:
    machine = results["machine"]
    devices = [name for key, name in machine["devices"].items() if key != "cpu"]  # the processor is named already
    return " · ".join([f"{machine['processor']}, {machine['usable_cores']} cores", *devices])


def _continuations(base: str, generation: Entry) -> list[Continuation]:
    original = generation["continuations"][base]
    # Split here, not in the template: what the page marks is a finding, and a finding is tested.
    out = []
    for label, text in generation["continuations"].items():
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(original, text, strict=False)))
        out.append(Continuation(label, text[:same], text[same:]))
    return out


def _data(png: bytes) -> str:
    """A picture as an address that holds it, so that the page fetches nothing."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
