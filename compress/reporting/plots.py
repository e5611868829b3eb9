"""Figures as PNG files, in a light and a dark dress; no display, no global state.

Identity is written beside each mark, so that colour only helps: runtimes have shapes, kinds of variants have colours that
people with colour-vision deficiencies tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from compress.reporting.columns import main_decode
from compress.reporting.labels import label_ends, place_labels

DPI = 160


@dataclass(frozen=True)
class Theme:
    """Colours of one dress."""

    surface: str
    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]  # in a fixed order
    heat: str  # a matplotlib colour map, pale for small values

    def kind(self, kind: str) -> str:
        """The colour of a kind of variant: ink for what is compared with, one hue for the controls, another for ours."""
        return self.muted if kind == "baseline" else self.series[1] if kind.startswith("skip") else self.series[0]


LIGHT = Theme(
    surface="#ffffff",
    ink="#1c1e21",
    muted="#5f6670",
    grid="#e4e7eb",
    series=("#2563a8", "#c2571a", "#2f7f5f", "#8a4fae", "#a08300", "#b03060", "#4a8fa8"),
    heat="YlOrRd",
)
DARK = Theme(
    surface="#16181c",
    ink="#e8eaed",
    muted="#a3abb5",
    grid="#2c3138",
    series=("#6fb1f5", "#f29b62", "#6ccba5", "#c79be8", "#d9bf4f", "#ee86ac", "#8fcbe0"),
    heat="magma",
)
THEMES = {"light": LIGHT, "dark": DARK}

SHAPES = {"eager": "o", "compile": "D", "onnx": "s", "ort-int8": "^"}


def throughput_against_perplexity(
    results: Mapping[str, Any], path: Path, text: str, measure: str = "decode", theme: Theme = LIGHT
) -> Path:
    """One point per variant, runtime and device: perplexity on `text` and tokens per second, with the Pareto front.

    `measure` is "decode" (first batch size, longest context) or "prefill". Raises ValueError where nothing has that text.
    """
    points = [point for row in results["rows"] if (point := _point(row, results["settings"], text, measure)) is not None]
    if not points:
        raise ValueError(f"no row was evaluated on {text!r}; draw one of the texts in results.json")
    several = len({row["device"] for row in results["rows"]}) > 1
    crowd = max(0, len(points) - 14)  # room for their names
    figure, axes = _figure(min(7.6 + 0.1 * crowd, 11.0), min(4.6 + 0.12 * crowd, 12.0), theme)
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    front = pareto([(float(f"{x:.4g}"), y) for x, y in zip(xs, ys, strict=True)])  # runtimes differ by rounding alone
    if len(front) > 1:  # stairs: between two points the better one is what there is
        stairs = {"drawstyle": "steps-post", "ls": (0, (4, 3)), "lw": 1.2, "zorder": 1}
        axes.plot([xs[i] for i in front], [ys[i] for i in front], color=theme.muted, **stairs)
    for x, y, row in points:
        shape = SHAPES.get(row["runtime"], "o")
        axes.scatter(
            [x], [y], s=64, marker=shape, color=theme.kind(row["kind"]), edgecolors=theme.surface, linewidths=1.2, zorder=3
        )
    _scale(axes, "x", xs)
    _scale(axes, "y", ys)
    what = "generated" if measure == "decode" else "of prompt read"
    axes.set_xlabel(f"perplexity on {text} (lower is better)")
    axes.set_ylabel(f"tokens {what} per second (higher is better)")
    names = [f"{row['label']} · {row['runtime']}" + (f" · {row['device']}" if several else "") for _, _, row in points]
    place_labels(axes, list(zip(xs, ys, strict=True)), names, color=theme.ink, halo=theme.surface)
    if len(front) > 1:
        axes.set_title(
            "dashed: Pareto front, nothing measured is both faster and better", color=theme.muted, fontsize=9, loc="left"
        )
    return _save(figure, path)


def layer_errors(rows: Sequence[Mapping[str, Any]], path: Path, theme: Theme = LIGHT) -> Path:
    """A bar per replaced module, by layer and role: the relative error of its fit, from a checkpoint's report.

    Raises ValueError where no row has an error.
    """
    placed = [(*_place(row), error) for row in rows if (error := module_error(row)) is not None]
    if not placed:
        raise ValueError("no module of the report has a relative_error; fit a method that approximates")
    layers = sorted({layer for layer, _, _ in placed})
    roles = list(dict.fromkeys(role for _, role, _ in placed))
    figure, axes = _figure(min(16.0, max(6.0, 1.6 + 0.16 * len(layers) * (len(roles) + 1))), 3.8, theme)
    width = min(0.82 / len(roles), 0.3)
    for position, role in enumerate(roles):
        heights = {layer: error for layer, other, error in placed if other == role}
        offset = (position - (len(roles) - 1) / 2) * width
        at = [layers.index(layer) + offset for layer in heights]
        axes.bar(
            at, list(heights.values()), width * 0.9, color=theme.series[position % len(theme.series)], label=role, zorder=2
        )
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("relative error of the fit")
    axes.grid(visible=False, axis="x")
    if len(roles) > 1:
        legend = axes.legend(ncols=min(len(roles), 7), loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, fontsize=8)
        for entry in legend.get_texts():
            entry.set_color(theme.ink)
    return _save(figure, path)


def sweep_heatmap(
    data: Mapping[tuple[int, int], float],
    path: Path,
    title: str = "perplexity minus baseline",
    axes_names: tuple[str, str] = ("input components I", "output components O"),
    theme: Theme = LIGHT,
) -> Path:
    """An (I × O) grid with its value in each cell; pale is small. Cells that were not measured stay empty.

    Raises ValueError for an empty grid.
    """
    if not data:
        raise ValueError("the sweep holds no value; give {(I, O): value}")
    rows, columns = sorted({i for i, _ in data}), sorted({o for _, o in data})
    grid = [[data.get((i, o), math.nan) for o in columns] for i in rows]
    figure, axes = _figure(1.9 + 0.85 * len(columns), 1.5 + 0.55 * len(rows), theme)
    image = axes.imshow(grid, cmap=theme.heat, aspect="auto")
    for (i, o), value in data.items():
        red, green, blue, _ = image.to_rgba(np.asarray(value))
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
        color = LIGHT.ink if bright else "#ffffff"
        axes.text(columns.index(o), rows.index(i), _cell(value), ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(columns)), [str(o) for o in columns])
    axes.set_yticks(range(len(rows)), [str(i) for i in rows])
    axes.grid(visible=False)
    axes.set_ylabel(axes_names[0])
    axes.set_xlabel(axes_names[1])
    axes.set_title(title, color=theme.ink, fontsize=10, loc="left")
    return _save(figure, path)


def curve(
    points: Mapping[str, Sequence[tuple[float, float]]],
    path: Path,
    x_label: str,
    y_label: str,
    *,
    title: str = "",
    baseline: float | None = None,
    theme: Theme = LIGHT,
) -> Path:
    """Named series of (x, y) points as lines, named at their right ends; `baseline` is a level to compare with.

    Raises ValueError for no point.
    """
    series = {name: sorted(given) for name, given in points.items() if given}
    if not series:
        raise ValueError("the curve holds no point; give {name: [(x, y), …]}")
    figure, axes = _figure(7.2, 4.2, theme)
    colors = [theme.series[position % len(theme.series)] for position in range(len(series))]
    for color, given in zip(colors, series.values(), strict=True):
        axes.plot(*zip(*given, strict=True), color=color, lw=2, marker="o", ms=6, mec=theme.surface, zorder=3)
    levels = [y for given in series.values() for _, y in given]
    ends = {name: (given[-1], color) for (name, given), color in zip(series.items(), colors, strict=True)}
    if baseline is not None:
        axes.axhline(baseline, color=theme.muted, lw=1.2, ls=(0, (4, 3)), zorder=1)
        levels.append(baseline)
        ends["baseline"] = ((max(x for given in series.values() for x, _ in given), baseline), theme.muted)
    _scale(axes, "y", levels)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, color=theme.ink, fontsize=10, loc="left")
    label_ends(axes, ends)
    return _save(figure, path)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices, by rising x, of the points (x, y) that no other beats with an x as small and a y as large.

    >>> pareto([(1, 5), (2, 4), (3, 9)])
    [0, 2]
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def _point(row: Mapping[str, Any], settings: Mapping[str, Any], text: str, measure: str) -> tuple[float, float, Any] | None:
    found = row["quality"]["texts"].get(text)
    if found is None:
        return None
    if measure == "prefill":
        return found["perplexity"], row["prefill"]["tokens_per_s"], row
    return found["perplexity"], main_decode(settings, row)["tokens_per_s"], row


def module_error(row: Mapping[str, Any]) -> float | None:
    """‖y − ŷ‖ / ‖y‖ of a report's row: its relative_error, or what its explained_variance amounts to; None without either."""
    if row.get("relative_error") is not None:
        return float(row["relative_error"])
    explained = row.get("explained_variance")
    return None if explained is None else math.sqrt(max(0.0, 1 - explained))


def _place(row: Mapping[str, Any]) -> tuple[int, str]:
    """(layer, role) of a module: the first number in its name, and its last part."""
    parts = str(row["module"]).split(".")
    layer = next((int(part) for part in parts if part.isdigit()), 0)
    return int(row.get("layer", layer)), parts[-1].removesuffix("_proj")


def _figure(width: float, height: float, theme: Theme) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=theme.surface, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(theme.surface)
    axes.grid(color=theme.grid, lw=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)
    axes.tick_params(colors=theme.muted, labelsize=9, length=0)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    return figure, axes


def _scale(axes: Axes, which: str, values: Sequence[float]) -> None:
    """Room around the values; logarithmic where they span more than a factor of 8."""
    low, high = min(values), max(values)
    axis, limits = (axes.xaxis, axes.set_xlim) if which == "x" else (axes.yaxis, axes.set_ylim)
    if low > 0 and high / low > 8:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        room = (high / low) ** 0.14
        limits(low / room, high * room)
        if high / low < 100:
            axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    else:
        room = (high - low) * 0.18 or abs(high) * 0.1 or 1.0
        limits(low - room, high + room)
    axis.set_major_formatter(FuncFormatter(_short))


def _short(value: float, _: object = None) -> str:
    """1500000 → 1.5M, as axis labels are read"""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= factor:
            unit = 1e3 if letter == "k" else factor
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def _cell(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}"


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return path
