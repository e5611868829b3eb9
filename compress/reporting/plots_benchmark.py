"""What a benchmark found, as PNG plots: speed against quality, and where the error of a checkpoint lies.

Identity is written beside each mark, so that colour only helps: runtimes have shapes, kinds of variants have colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.reporting.canvas import LIGHT, Theme, canvas, save, scale
from compress.reporting.columns import main_decode
from compress.reporting.labels import place_labels

# Shapes differ in outline, not only in corners: they are told apart at eight points.
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
    figure, (axes,) = canvas([min(7.6 + 0.1 * crowd, 11.0)], min(4.6 + 0.12 * crowd, 12.0), theme)
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    # Runtimes compute the same perplexity but for rounding, which is no reason to stand on the front.
    front = pareto([(float(f"{x:.4g}"), y) for x, y in zip(xs, ys, strict=True)])
    if len(front) > 1:
        # Stairs, not slopes: between two points the better of the two is all there is.
        stairs = {"drawstyle": "steps-post", "ls": (0, (4, 3)), "lw": 1.2, "zorder": 1}
        axes.plot([xs[i] for i in front], [ys[i] for i in front], color=theme.muted, **stairs)
        said = "dashed: Pareto front, nothing measured is both faster and better"
        axes.set_title(said, color=theme.muted, fontsize=9, loc="left")
    for x, y, row in points:
        shape = SHAPES.get(row["runtime"], "o")
        axes.scatter(
            [x], [y], s=64, marker=shape, color=theme.kind(row["kind"]), edgecolors=theme.surface, linewidths=1.2, zorder=3
        )
    scale(axes, "x", xs)
    scale(axes, "y", ys)
    what = "generated" if measure == "decode" else "of prompt read"
    axes.set_xlabel(f"perplexity on {text} (lower is better)")
    axes.set_ylabel(f"tokens {what} per second (higher is better)")
    names = [f"{row['label']} · {row['runtime']}" + (f" · {row['device']}" if several else "") for _, _, row in points]
    # Last: whatever changes the axes afterwards would move the points under their labels.
    place_labels(axes, list(zip(xs, ys, strict=True)), names, color=theme.ink, halo=theme.surface)
    return save(figure, path)


def layer_errors(rows: Sequence[Mapping[str, Any]], path: Path, theme: Theme = LIGHT) -> Path:
    """A bar per replaced module, by layer and role: the relative error of its fit, from a checkpoint's report.

    Raises ValueError where no row has an error.
    """
    placed = [(*_place(row), error) for row in rows if (error := module_error(row)) is not None]
    if not placed:
        raise ValueError("no module of the report has a relative_error; fit a method that approximates")
    layers = sorted({layer for layer, _, _ in placed})
    roles = list(dict.fromkeys(role for _, role, _ in placed))
    figure, (axes,) = canvas([min(16.0, max(6.0, 1.6 + 0.16 * len(layers) * (len(roles) + 1)))], 3.8, theme)
    width = min(0.82 / len(roles), 0.3)
    for position, role in enumerate(roles):
        heights = {layer: error for layer, other, error in placed if other == role}
        offset = (position - (len(roles) - 1) / 2) * width
        at = [layers.index(layer) + offset for layer in heights]
        axes.bar(at, list(heights.values()), width * 0.9, color=theme.color(position), label=role, zorder=2)
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("relative error of the fit")
    axes.grid(visible=False, axis="x")
    if len(roles) > 1:  # above the axes: inside, it would cover bars
        legend = axes.legend(ncols=min(len(roles), 7), loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, fontsize=8)
        for entry in legend.get_texts():
            entry.set_color(theme.ink)
    return save(figure, path)


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
    # A share of the variance, so of squares; worse than nothing it is negative, and the error above 1.
    return None if explained is None else math.sqrt(max(0.0, 1 - explained))


def _place(row: Mapping[str, Any]) -> tuple[int, str]:
    """(layer, role) of a module: the first number in its name, and its last part."""
    # Names of modules differ between architectures, but a layer's index comes before any other number in them.
    parts = str(row["module"]).split(".")
    layer = next((int(part) for part in parts if part.isdigit()), 0)
    return int(row.get("layer", layer)), parts[-1].removesuffix("_proj")
