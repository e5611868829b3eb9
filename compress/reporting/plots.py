"""Curves and heat maps, alone or side by side: what a search or a sweep of recipes found, as one PNG file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from compress.reporting.canvas import LIGHT, Theme, canvas, save, scale, spans_decades
from compress.reporting.labels import label_ends


@dataclass(frozen=True)
class Curves:
    """Named series of (x, y) points as lines, named at their right ends; `baseline` is a level to compare with.

    Raises ValueError for no point.
    """

    points: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str
    y_label: str
    title: str = ""
    baseline: float | None = None

    def __post_init__(self) -> None:
        if not any(self.points.values()):
            raise ValueError("the curve holds no point; give {name: [(x, y), …]}")

    def size(self) -> tuple[float, float]:
        """Width and height in inches, with room for the names at the right."""
        # The longest name in inches of its font; without it a long one would squeeze the axes.
        return 6.4 + 0.08 * max(map(len, self.points)), 4.2

    def draw(self, axes: Axes, theme: Theme) -> None:
        """Draw onto empty axes."""
        series = {name: sorted(given) for name, given in self.points.items() if given}
        levels = [y for given in series.values() for _, y in given]
        ends: dict[str, tuple[tuple[float, float], str]] = {}
        for position, (name, given) in enumerate(series.items()):
            color = theme.color(position)
            axes.plot(*zip(*given, strict=True), color=color, lw=2, marker="o", ms=6, mec=theme.surface, zorder=3)
            ends[name] = (given[-1], color)
        if self.baseline is not None:
            axes.axhline(self.baseline, color=theme.muted, lw=1.2, ls=(0, (4, 3)), zorder=1)
            levels.append(self.baseline)  # it must be on the picture, however far away
            ends["baseline"] = ((max(x for x, _ in (given[-1] for given in series.values())), self.baseline), theme.muted)
        scale(axes, "y", levels)
        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)
        label_ends(axes, ends)  # last: it reads the heights that the scale gives


@dataclass(frozen=True)
class HeatMap:
    """{(x, y): value} as a grid with the value in each cell; pale is small, and what was not measured stays empty.

    Both keys rise from the lower left. The colours are logarithmic where the values differ more than tenfold. Raises
    ValueError for an empty grid.
    """

    values: Mapping[tuple[float, float], float]
    x_label: str
    y_label: str
    title: str = ""

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("the heat map holds no value; give {(x, y): value}")

    def size(self) -> tuple[float, float]:
        """Width and height in inches: cells as large as the numbers in them need."""
        across, up = self._keys()
        return max(3.6, 1.9 + 0.85 * len(across)), max(2.4, 1.5 + 0.55 * len(up))

    def draw(self, axes: Axes, theme: Theme) -> None:
        """Draw onto empty axes."""
        across, up = self._keys()
        # Cells of one size, whatever the distances between the keys: 16, 32, 64, 128 are four steps.
        grid = [[self.values.get((x, y), math.nan) for x in across] for y in up]
        norm = LogNorm() if spans_decades(list(self.values.values())) else None
        image = axes.imshow(grid, cmap=theme.heat, norm=norm, aspect="auto", origin="lower")
        for (x, y), value in self.values.items():
            red, green, blue, _ = image.to_rgba(np.asarray(value))
            bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55  # luma as the eye weighs it
            color = LIGHT.ink if bright else "#ffffff"
            axes.text(across.index(x), up.index(y), _cell(value), ha="center", va="center", color=color, fontsize=9)
        axes.set_xticks(range(len(across)), [f"{x:g}" for x in across])
        axes.set_yticks(range(len(up)), [f"{y:g}" for y in up])
        axes.grid(visible=False)  # it would run through the middle of the cells
        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)

    def _keys(self) -> tuple[list[float], list[float]]:
        return sorted({x for x, _ in self.values}), sorted({y for _, y in self.values})


def panels(drawings: Sequence[Curves | HeatMap], path: Path, theme: Theme = LIGHT) -> Path:
    """Draw curves and heat maps side by side, each under its title, into the PNG file at `path`, which is returned."""
    sizes = [drawing.size() for drawing in drawings]
    figure, row = canvas([width for width, _ in sizes], max(height for _, height in sizes), theme)
    for axes, drawing in zip(row, drawings, strict=True):
        axes.set_title(drawing.title, color=theme.ink, fontsize=10, loc="left")
        drawing.draw(axes, theme)
    return save(figure, path)


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
    """`Curves` in a picture of their own. Raises ValueError for no point."""
    return panels([Curves(points, x_label, y_label, title, baseline)], path, theme)


def _cell(value: float) -> str:
    # Two decimals tell neighbours apart; in a large number they would only widen the cell.
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}"
