"""One self-contained HTML page of a benchmark: style and pictures inside, nothing fetched, for light and dark screens."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from compress.reporting.columns import Column, Entry
from compress.reporting.sentences import compared, measured_how, summary, title
from compress.reporting.tables import Table, tables


@dataclass(frozen=True)
class Picture:
    """A plot in both dresses, and the section of the page it belongs to."""

    section: str
    caption: str
    light: bytes  # PNG
    dark: bytes


STYLE = """
:root { color-scheme: light dark; --surface: #ffffff; --raised: #f5f6f8; --ink: #1c1e21; --muted: #5f6670; --line: #e0e3e8;
  --accent: #2563a8; --mark: #fff1c9; }
@media (prefers-color-scheme: dark) { :root { --surface: #16181c; --raised: #1f2227; --ink: #e8eaed; --muted: #a3abb5;
  --line: #33383f; --accent: #6fb1f5; --mark: #4a3d12; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 2rem 1.25rem 4rem; background: var(--surface); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p, li, dd { max-width: 46rem; }
.muted, figcaption, dd { color: var(--muted); }
ul.summary { padding-left: 1.1rem; font-size: 1.05rem; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { background: var(--raised); font-weight: 600; white-space: normal; vertical-align: bottom; min-width: 4.5rem; }
th.name, td.name, th.left, td.left { text-align: left; }
td.name { font-weight: 600; }
tr.group ~ tr.group td { border-top: 2px solid var(--line); }
tr:last-child td { border-bottom: 0; }
dl { display: grid; grid-template-columns: max-content minmax(0, 46rem); gap: .2rem 1rem; font-size: .9rem;
  margin: .75rem 0 0; }
dt { font-weight: 600; }
dd { margin: 0; }
figure { margin: 1rem 0; max-width: 54rem; }
figure img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 8px; display: block; }
figcaption { font-size: .9rem; margin-top: .4rem; max-width: 46rem; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: .9rem; }
.texts article { border: 1px solid var(--line); border-radius: 8px; padding: .75rem .9rem; }
.texts h3 { margin: 0 0 .35rem; }
.generated { white-space: pre-wrap; overflow-wrap: anywhere; font-family: Georgia, "DejaVu Serif", serif; }
mark { background: var(--mark); color: inherit; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dt { margin-top: .4rem; } }
"""


def page(results: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The page of one results.json; pictures are drawn from it beforehand."""
    heading = escape(title(results))
    size, quality, *others = tables(results)
    parts = [
        f"<h1>{heading}</h1>",
        f'<p class="muted">{escape(results["created"])} · {escape(_machine(results))}</p>',
        '<ul class="summary">' + "".join(f"<li>{escape(line)}</li>" for line in summary(results)) + "</ul>",
        _section("What was compared", _definitions(compared(results))),
        *(_section(block.title, _table(block), _explanations(block.columns)) for block in (size, quality)),
        *(_section(name, _figures(pictures, name)) for name in dict.fromkeys(picture.section for picture in pictures)),
        *(_section(block.title, _table(block), _explanations(block.columns)) for block in others),
    ]
    if results["generation"]:
        parts.append(_section("The same prompt, continued", *_generations(results)))
    parts.append(_section("How it was measured", _definitions(measured_how(results))))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _machine(results: Entry) -> str:
    machine = results["machine"]
    devices = [name for key, name in machine["devices"].items() if key != "cpu"]
    return " · ".join([f"{machine['processor']}, {machine['usable_cores']} cores", *devices])


def _generations(results: Entry) -> list[str]:
    out = []
    for base, generation in results["generation"].items():
        out.append(
            f"<p>Greedy: always the most likely token, {generation['tokens']} of them. Marked is where a text leaves the "
            f"baseline’s.</p><p>Prompt:</p><p class='generated'>{escape(generation['prompt'])}</p>"
        )
        original = generation["continuations"][base]
        cards = []
        for label, text in generation["continuations"].items():
            same = next(
                (i for i, (a, b) in enumerate(zip(original, text, strict=False)) if a != b), min(len(original), len(text))
            )
            rest = f"<mark>{escape(text[same:])}</mark>" if text[same:] else ""
            said = f'<div class="generated">{escape(text[:same])}{rest}</div>'
            cards.append(f"<article><h3>{escape(label)}</h3>{said}</article>")
        out.append(f'<div class="texts">{"".join(cards)}</div>')
    return out


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(parts) + "</section>"


def _table(block: Table) -> str:
    def row(tag: str, texts: Sequence[str]) -> str:
        named = zip(block.columns, texts, strict=True)
        return "".join(f"<{tag}{_class(column)}>{escape(text)}</{tag}>" for column, text in named)

    head = row("th", [column.header for column in block.columns])
    grouped = any(column.is_group for column in block.columns)
    rows = "".join(f"<tr{' class=group' * bool(grouped and texts[0])}>{row('td', texts)}</tr>" for texts in block.texts())
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _class(column: Column) -> str:
    return " class=name" if column.is_name else " class=left" if column.is_group else ""


def _explanations(columns: Iterable[Column]) -> str:
    return _definitions([(column.header, column.explanation) for column in columns])


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in pairs) + "</dl>"


def _figures(pictures: Iterable[Picture], section: str) -> str:
    figures = (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data(picture.dark)}">'
        f'<img src="{_data(picture.light)}" alt="{escape(picture.caption)}"></picture>'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in pictures
        if picture.section == section
    )
    return f'<div class="figures">{"".join(figures)}</div>'


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
