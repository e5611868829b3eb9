"""results.json → Markdown, PNG plots and one self-contained HTML page; the table that the console prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table as RichTable

from compress.checkpoint.files import write_text
from compress.checkpoint.lock import locked
from compress.checkpoint.manifest import Manifest
from compress.markdown import inert, plain
from compress.reading import json_text
from compress.reporting.canvas import THEMES, Theme
from compress.reporting.columns import Entry, text_names
from compress.reporting.page import Picture, page
from compress.reporting.plots_benchmark import layer_errors, module_error, throughput_against_perplexity
from compress.reporting.sentences import compared, measured_how, summary, title
from compress.reporting.tables import Table, tables

FORMAT = 1  # of results.json
_MOST = {"models": 200, "rows": 10_000, "skipped": 10_000}  # a picture each, a line each


def read_results(path: Path) -> dict[str, Any]:
    """A results.json. Raises FileNotFoundError, or ValueError for one this version does not read."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}; `compress bench DIR` writes results.json")
    try:
        results = json_text.read(path)
    except ValueError as error:
        raise ValueError(f"{error}; run compress bench again") from None
    found = results.get("format") if isinstance(results, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}; this compress reads {FORMAT}: run compress bench again")
    for part, most in _MOST.items():
        if not isinstance(results.get(part), list) or len(results[part]) > most:
            raise ValueError(f"{path}: {part} is no list of at most {most}; run compress bench again")
    return results


@contextmanager
def reading_results(name: str) -> Iterator[None]:
    """What is missing in a results.json, or of another type, comes out as a ValueError that calls it `name`."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ArithmeticError, StopIteration, UndefinedError) as error:
        reason = f"{type(error).__name__}: {str(error)[:100]}"
        raise ValueError(f"{name} is no results.json that compress bench wrote ({reason}); run it again") from None


def report(results: Mapping[str, Any] | Path, folder: Path) -> dict[str, Path]:
    """Write report.md, report.html and plots/*.png of a benchmark into `folder`.

    Returns {"markdown", "page", and each plot's name: its path}. Raises what `read_results` raises for a path, FileExistsError
    where a file that compress did not write is in the way.
    """
    loaded = read_results(results) if isinstance(results, Path) else results
    with reading_results(str(results) if isinstance(results, Path) else "what was given"):
        markdown(loaded)  # whatever is wrong comes up here, before anything is written
        with locked(folder):
            ours = Manifest(folder, "report")
            with ours.files("report.md", "report.html") as (text, html):
                drawn = draw(loaded, ours)
                pictures = [Picture(p.section, p.caption, p.light.read_bytes(), p.dark.read_bytes()) for p in drawn]
                write_text(text, markdown(loaded, [(plot.caption, plot.light.relative_to(folder)) for plot in drawn]))
                write_text(html, page(loaded, pictures))
    return {"markdown": text, "page": html, **{plot.light.stem: plot.light for plot in drawn}}


@dataclass(frozen=True)
class Drawn:
    """A plot on disk in both dresses."""

    section: str
    caption: str
    light: Path
    dark: Path


def draw(results: Entry, ours: Manifest) -> list[Drawn]:
    """Draw both throughputs on the first text, and the errors of every compressed variant, as PNG files in plots/."""
    # Only the first text: a picture more for each would say little, and the tables have all of them.
    settings, text = results["settings"], text_names(results)[0]
    out = []

    def both(name: str, section: str, caption: str, plot: Callable[[Path, Theme], Path]) -> None:
        # Both, because the page follows the reader's screen and Markdown cannot.
        with ours.files(f"plots/{name}.png", f"plots/{name}-dark.png") as (light, dark):
            plot(light, THEMES["light"])
            plot(dark, THEMES["dark"])
        out.append(Drawn(section, caption, light, dark))

    for measure, caption in (
        (
            "decode",
            f"Tokens generated per second (batch {settings['batch_sizes'][0]}, after {max(settings['contexts'])} tokens)",
        ),
        ("prefill", f"Tokens per second at which a prompt of {settings['prefill_length']} tokens is read"),
    ):
        caption += f", against perplexity on “{text}”: up and to the left is better."  # noqa: PLW2901
        both(measure, "Speed against quality", caption, partial(_throughput, results, text, measure))
    for model in results["models"]:
        if any(module_error(row) is not None for row in model["modules"]):
            # Labels are anything; file names should not be.
            name = "errors-" + "".join(c if c.isalnum() else "-" for c in model["label"])
            caption = (
                f"{model['label']}: relative error of each replaced module on the calibration text, as its fit reported it."
            )
            both(name, "Where the error is", caption, partial(_errors, model["modules"]))
    return out


def _throughput(results: Entry, text: str, measure: str, path: Path, theme: Theme) -> Path:
    return throughput_against_perplexity(results, path, text, measure, theme)


def _errors(rows: Sequence[Entry], path: Path, theme: Theme) -> Path:
    return layer_errors(rows, path, theme)


def markdown(results: Entry, pictures: Sequence[tuple[str, Path]] = ()) -> str:
    """The benchmark as Markdown; `pictures` are (caption, path relative to the file), and are linked."""
    lines = [
        f"# {plain(title(results))}",
        "",
        *(f"- {plain(line)}" for line in summary(results)),
        "",
        "## What was compared",
        "",
    ]
    lines += [f"- **{plain(what)}**: {plain(meaning)}" for what, meaning in compared(results)]
    for table in tables(results):
        lines += ["", f"## {table.title}", "", *_markdown_table(table), ""]
        lines += [f"- *{plain(column.header)}*: {plain(column.explanation)}" for column in table.columns]
    lines.append("")
    for caption, path in pictures:
        lines += [f"![{plain(caption)}]({path.as_posix()})", "", f"*{plain(caption)}*", ""]
    for generation in results["generation"].values():
        lines += ["## The same prompt, continued", "", _quoted(generation["prompt"]), ""]
        lines += [f"**{plain(label)}**\n\n{_quoted(text)}\n" for label, text in generation["continuations"].items()]
    return "\n".join(
        [
            *lines,
            "## How it was measured",
            "",
            *(f"- **{plain(what)}**: {plain(how)}" for what, how in measured_how(results)),
            "",
        ]
    )


def render_table(results: Entry) -> RenderableType:
    """The tables for the console, without the details that the report has, and what could not be measured.

    For a console without markup: labels and reasons may have brackets.
    """
    shown = (ConsoleTable(table) for table in tables(results) if not table.is_detail)
    parts: list[RenderableType] = [part for table in shown for part in (table, "")]
    parts += [f"not measured: {s['runtime']} on {s['device']}: {s['reason']}" for s in results["skipped"]]
    return Group(*parts)


@dataclass(frozen=True)
class ConsoleTable:
    """A table that, where it must, breaks cells between words only, the longest first."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What rich prints; only here is it known how wide the console is."""
        printed = RichTable(title=self.table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_edge=False)
        printed.pad_edge = False
        columns = [column for column in self.table.columns if not column.is_detail]
        # "none" under "vs baseline" says as much, and leaves the interval on one line of an 80-column console.
        rows = [[text.replace("no difference", "none") for text in texts] for texts in self.table.texts(with_details=False)]
        texts_of = [[column.header, *(texts[i] for texts in rows)] for i, column in enumerate(columns)]
        widths = column_widths(texts_of, options.max_width - 3 * (len(columns) - 1))  # 3: between columns
        for column, width in zip(columns, widths, strict=True):
            is_text = column.is_name or column.is_group
            printed.add_column(column.header, justify="left" if is_text else "right", overflow="fold", width=width)
        for position, texts in enumerate(rows):
            if position and columns[0].is_group and texts[0]:
                printed.add_section()
            printed.add_row(*texts)
        yield printed


def column_widths(texts: Sequence[Sequence[str]], room: int) -> list[int]:
    """Widths of columns, given the cells of each, that sum to at most `room` if breaking between words allows it.

    >>> column_widths([["a header", "1"], ["12345"]], room=11)
    [6, 5]
    """
    widths = [max(map(len, column)) for column in texts]
    # Narrower than its longest word a column would break numbers, and a broken number is read as another one.
    least = [max(len(word) for cell in column for word in cell.split(" ")) for column in texts]
    while sum(widths) > room:
        slack = [width - fewest for width, fewest in zip(widths, least, strict=True)]
        widest = max(range(len(widths)), key=lambda i: (slack[i] > 0, widths[i]))
        if slack[widest] <= 0:
            break
        widths[widest] -= 1
    return widths


def _markdown_table(table: Table) -> list[str]:
    def row(texts: Iterable[str]) -> str:
        return f"| {' | '.join(map(plain, texts))} |"

    rule = row("---" if column.is_name or column.is_group else "---:" for column in table.columns)
    return [row(column.header for column in table.columns), rule, *map(row, table.texts())]


def _quoted(text: str) -> str:
    return "\n".join(f"> {inert(line)}" for line in text.splitlines() or [""])
