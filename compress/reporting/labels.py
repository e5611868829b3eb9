"""Text labels beside points of a plot, placed so that they cover neither each other nor a point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

Point = Sequence[float] | NDArray[np.float64]  # (x, y)

FONT_SIZE = 8.5
GAP = 7.0  # points between a mark and its label
MARK = 5.0  # half the side of a mark's own square, in points


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    color: str,
    halo: str,
) -> list[Bbox]:
    """Write each name near its point (data coordinates); returns the boxes taken, in pixels.

    Candidates lie around the point at growing distance; the one that covers least is taken, and tied to its point by a line
    where it is not beside it. Lines are covered by a box of the `halo` colour. Limits and scales must be set before.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # fixes the layout, and with it where the axes are
    unit = figure.dpi / 72
    frame = axes.get_window_extent()
    marks = [_square(axes.transData.transform(p), MARK * unit) for p in points]
    taken: list[Bbox] = []
    # From the right: labels go to the right of their points where they can, and the rightmost have the least room.
    for index in sorted(range(len(points)), key=lambda i: -points[i][0]):
        at = axes.transData.transform(points[index])
        label = axes.annotate(
            names[index],
            points[index],
            (0, 0),
            textcoords="offset points",
            fontsize=FONT_SIZE,
            color=color,
            zorder=2.5,  # above lines, below marks
            bbox={"facecolor": halo, "edgecolor": "none", "pad": 0.8},
        )
        size = label.get_window_extent()
        _, box, far = min(
            (
                (_cost(candidate, taken, marks, frame) + 0.02 * distance, candidate, distance)
                for candidate, distance in _candidates(at, size.width, size.height, unit)
            ),
            key=lambda option: option[0],
        )
        label.set_position(((box.x0 - at[0]) / unit, (box.y0 - at[1]) / unit))
        if far > GAP + 4:
            _tie(axes, at, box, color)
        taken.append(box)
    return taken


def label_ends(axes: Axes, ends: Mapping[str, tuple[tuple[float, float], str]]) -> None:
    """Write each name, in its colour, right of the axes at the height of its end (data coordinates), apart from the others."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    line = FONT_SIZE * 1.35 * figure.dpi / 72
    heights = {name: axes.transData.transform(point)[1] for name, (point, _) in ends.items()}
    ordered = sorted(heights, key=heights.__getitem__)
    free = float("-inf")
    at: list[float] = []
    for name in ordered:
        free = max(heights[name], free + line)
        at.append(free)
    # Pushed up only, a crowd would float above its lines: it moves back down as a whole.
    shift = sum(height - heights[name] for height, name in zip(at, ordered, strict=True)) / len(at)
    frame = axes.get_window_extent()
    for height, name in zip(at, ordered, strict=True):
        fraction = (height - shift - frame.y0) / frame.height
        kind = {"fontsize": FONT_SIZE, "color": ends[name][1], "va": "center", "annotation_clip": False}
        axes.annotate(name, (1, fraction), (6, 0), xycoords="axes fraction", textcoords="offset points", **kind)


def _candidates(at: Point, width: float, height: float, unit: float) -> Iterator[tuple[Bbox, float]]:
    """Boxes around a point, nearest first, with their distance in points: right, left, above, below and the diagonals."""
    for gap in (GAP, 14.0, 24.0, 38.0, 56.0, 80.0):
        for turn in range(16):
            angle = turn * math.pi / 8
            dx, dy = math.cos(angle), math.sin(angle)
            # The box's nearest edge, not its centre, keeps the distance.
            x = at[0] + dx * gap * unit + (dx - 1) / 2 * width
            y = at[1] + dy * gap * unit + (dy - 1) / 2 * height
            yield Bbox.from_bounds(x, y, width, height), gap + 0.5 * turn / 16


def _cost(box: Bbox, taken: Sequence[Bbox], marks: Sequence[Bbox], frame: Bbox) -> float:
    """Area covered of labels and marks, and area outside the frame, in units of the box's own."""
    own = box.width * box.height
    covered = sum(_shared(box.padded(2), other) for other in (*taken, *marks))
    outside = own - _shared(box, frame)
    return (covered + 3 * outside) / own * 100


def _shared(a: Bbox, b: Bbox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0.0) * max(height, 0.0)


def _square(at: Point, half: float) -> Bbox:
    return Bbox.from_extents(at[0] - half, at[1] - half, at[0] + half, at[1] + half)


def _tie(axes: Axes, at: Point, box: Bbox, color: str) -> None:
    """A thin line from a point to the nearest edge of its label."""
    end = (min(max(at[0], box.x0), box.x1), min(max(at[1], box.y0), box.y1))
    inverse = axes.transData.inverted()
    (x0, y0), (x1, y1) = inverse.transform(at), inverse.transform(end)
    axes.plot([x0, x1], [y0, y1], color=color, lw=0.6, alpha=0.6, zorder=2.6, scalex=False, scaley=False)
