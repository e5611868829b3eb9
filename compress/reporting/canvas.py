"""What every figure is drawn on: the two dresses, empty axes, scales and the file; no display, no global state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from compress.checkpoint.files import atomic

DPI = 160
LOG_SPAN = 10  # values further apart than this factor would lie on one line of a linear axis


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
        """The colour of a kind of variant: grey for what is compared with, one hue for the controls, another for ours."""
        return self.muted if kind == "baseline" else self.series[1] if kind.startswith("skip") else self.series[0]

    def color(self, position: int) -> str:
        """The colour of the series at a position; they repeat where there are more series than colours."""
        return self.series[position % len(self.series)]


# Hues that people with colour-vision deficiencies tell apart, and each at least 3:1 against its surface.
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


def canvas(widths: Sequence[float], height: float, theme: Theme) -> tuple[Figure, list[Axes]]:
    """A figure with one empty axes per width, side by side; inches."""
    figure = Figure(figsize=(sum(widths), height), dpi=DPI, facecolor=theme.surface, layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot, which keeps every figure until it is told to forget it
    row = list(figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0])
    for axes in row:
        axes.set_facecolor(theme.surface)
        axes.grid(color=theme.grid, lw=0.8)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(theme.grid)
        axes.tick_params(colors=theme.muted, labelsize=9, length=0)
        axes.xaxis.label.set_color(theme.ink)
        axes.yaxis.label.set_color(theme.ink)
    return figure, row


def scale(axes: Axes, which: str, values: Sequence[float]) -> None:
    """Room around the values on axis `which`, "x" or "y"; logarithmic where they span more than a factor of LOG_SPAN."""
    low, high = min(values), max(values)
    axis, limits = (axes.xaxis, axes.set_xlim) if which == "x" else (axes.yaxis, axes.set_ylim)
    if spans_decades(values):
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        room = (high / low) ** 0.14
        limits(low / room, high * room)
        # Over one or two decades matplotlib's own ticks are too few to read a value from.
        if high / low < 100:
            axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    else:
        room = (high - low) * 0.18 or abs(high) * 0.1 or 1.0  # values may be equal, and may be zero
        limits(low - room, high + room)
    axis.set_major_formatter(FuncFormatter(_short))


def spans_decades(values: Sequence[float]) -> bool:
    """Whether values want a logarithmic scale and can have one: all above zero, more than a factor of LOG_SPAN apart."""
    return min(values) > 0 and max(values) > LOG_SPAN * min(values)


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, whole or not at all; the same figure gives the same bytes."""
    with atomic(path) as temporary:
        # matplotlib would write its version into the file
        figure.savefig(temporary, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
    return path


def _short(value: float, _: object = None) -> str:
    """1500000 → 1.5M, as axis labels are read"""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= factor:
            unit = 1e3 if letter == "k" else factor  # thousands are written out up to 9999
            return f"{value / unit:g}{letter}"
    return f"{value:g}"
