"""Text labels beside points of a plot, placed so that they cover neither each other nor a point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

FONT_SIZE = 8.5
GAP = 8.0  # from a mark's centre to its label, in points
MARK = 5.0  # half the side of a mark's own square, in points

# Chosen on random crowds of 12 to 20 points. A pull back to the points makes dense crowds swing without end, and removing
# crossings exchanges two places without regard to how long the names are: the labels would then overlap.
FORCES = {
    "force_text": (0.5, 1.0),
    "force_static": (0.5, 1.0),
    "force_pull": (0.0, 0.0),
    "expand": (1.02, 1.15),
    "max_move": 30,
    "explode_radius": 0,  # labels begin beside their points; a lone one is to stay there
    "prevent_crossings": False,
    "iter_lim": 300,  # not seconds: the same input must give the same picture on any machine
}


def place_labels(axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], color: str, halo: str) -> list[Bbox]:
    """Write each name near its point (data coordinates), tied to it by a line where it is not beside it.

    Lines of the plot are covered by a box of the `halo` colour. Limits and scales must be set before. Returns the boxes
    taken, in pixels, in the order of the names.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # fixes the layout, and with it where the axes are
    unit = figure.dpi / 72
    at = axes.transData.transform(points)
    to_data = axes.transData.inverted().transform
    box = {"facecolor": halo, "edgecolor": "none", "pad": 0.8}
    beside = np.array([GAP * unit, 0.0])
    texts = [
        axes.text(x, y, name, fontsize=FONT_SIZE, color=color, va="center", bbox=box, zorder=2.5)
        for (x, y), name in zip(to_data(at + beside), names, strict=True)
    ]
    right = axes.get_window_extent().x1
    for text, (x, _) in zip(texts, to_data(at - beside), strict=True):
        text.set_in_layout(False)  # one that still sticks out must not shrink the axes under the others
        # adjustText stops where nothing overlaps, and only then moves inside what sticks out: onto its own point.
        if text.get_window_extent().x1 > right:
            text.set(x=x, horizontalalignment="right")
    # adjustText takes bare boxes in data coordinates; of artists it would transform pixels a second time.
    marks = [Bbox([to_data(corner - MARK * unit), to_data(corner + MARK * unit)]) for corner in at]
    tie = {"arrowstyle": "-", "color": color, "lw": 0.6, "alpha": 0.6}
    targets = {"target_x": [x for x, _ in points], "target_y": [y for _, y in points]}
    reach = (GAP + 4) * unit
    # avoid_self would push each label away from where it begins, which is where it should stay.
    adjust_text(texts, ax=axes, objects=marks, avoid_self=False, min_arrow_len=reach, arrowprops=tie, **targets, **FORCES)
    return [text.get_window_extent() for text in texts]


def label_ends(axes: Axes, ends: Mapping[str, tuple[tuple[float, float], str]]) -> None:
    """Write each name right of the axes at the height of its end, apart from the others and in the order of the ends.

    `ends` is {name: ((x, y) in data coordinates, colour)}. Limits and scales must be set before.
    """
    # Not adjustText: where it may only move up and down, it leaves labels of one height on top of each other, and in a
    # crowd it lets them pass one another, so that names no longer stand in the order of their lines.
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
