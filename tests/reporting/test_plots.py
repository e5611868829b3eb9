"""Plots hold what they are given: the front is the front, labels cover nothing, empty data are refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image
from results_for_tests import made_results

from compress.reporting.canvas import DARK, LIGHT
from compress.reporting.labels import MARK, label_ends, place_labels
from compress.reporting.plots import Curves, HeatMap, curve, panels
from compress.reporting.plots_benchmark import layer_errors, module_error, pareto, throughput_against_perplexity


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points):
    front = {points[i] for i in pareto(points)}
    best = {(x, y) for x, y in points if not any((a <= x and b >= y) and (a, b) != (x, y) for a, b in points)}
    assert front == best


def _axes():
    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlim(-0.2, 1.2)
    axes.set_ylim(-0.2, 1.2)
    return axes


@pytest.mark.parametrize("seed", range(8))
def test_labels_cover_neither_each_other_nor_a_point(seed):
    random = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in random.random((12, 2))]
    points[1] = (points[0][0] + 0.01, points[0][1])  # two that all but coincide
    axes = _axes()
    boxes = place_labels(axes, points, [f"variant {i} · onnx" for i in range(12)], "black", "white")
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert not a.overlaps(b)
        for point in axes.transData.transform(points):
            half = MARK * axes.figure.dpi / 72
            assert not a.overlaps(Bbox([point - half, point + half]))  # the whole mark, not its centre alone
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


@pytest.mark.parametrize("at", [(-0.15, 0.5), (1.15, 0.5), (0.5, -0.15), (0.5, 1.15), (1.15, 1.15)])
def test_labels_of_points_at_the_edge_stay_inside_and_off_their_points(at):
    axes = _axes()
    (box,) = place_labels(axes, [at], ["a long name · onnx"], "black", "white")
    frame, point, half = axes.get_window_extent(), axes.transData.transform(at), MARK * axes.figure.dpi / 72
    assert frame.x0 <= box.x0 < box.x1 <= frame.x1
    assert frame.y0 <= box.y0 < box.y1 <= frame.y1
    assert not box.overlaps(Bbox([point - half, point + half]))


def test_lone_labels_stand_beside_their_points():
    axes = _axes()
    (box,) = place_labels(axes, [(0.5, 0.5)], ["here"], "black", "white")
    x, y = axes.transData.transform((0.5, 0.5))
    assert 0 < box.x0 - x < 15
    assert box.y0 < y < box.y1


@pytest.mark.parametrize("heights", [(0.5, 0.5), (0.1, 0.11, 0.12, 0.9), (0.3, 0.3, 0.3, 0.31, 0.29, 0.0)])
def test_names_of_ends_stand_apart_and_in_the_order_of_the_ends(heights):
    axes = _axes()
    label_ends(axes, {f"series {i}": ((1.0, height), "black") for i, height in enumerate(heights)})
    axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]  # from the lowest up
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))
    order = [heights[int(text.get_text().split()[1])] for text in axes.texts]
    assert order == sorted(heights)
    assert all(box.x0 > axes.get_window_extent().x1 for box in boxes)


DRAWN = {
    "throughput": lambda path, theme: throughput_against_perplexity(made_results(), path, "own", "decode", theme),
    "prefill": lambda path, theme: throughput_against_perplexity(made_results(), path, "other", "prefill", theme),
    "errors": lambda path, theme: layer_errors(made_results()["models"][2]["modules"], path, theme),
    "heat map": lambda path, theme: panels([HeatMap({(16, 8): 3.2, (16, 64): 4.5, (32, 8): 3.1}, "x", "y")], path, theme),
    "curve": lambda path, theme: curve({"a": [(1, 2), (2, 1)], "b": [(1, 3)]}, path, "x", "y", baseline=0.5, theme=theme),
}


@pytest.mark.parametrize("name", DRAWN)
def test_plots_are_drawn_in_both_dresses_and_the_same_each_time(name, tmp_path):
    light, dark = (DRAWN[name](tmp_path / f"{theme.surface}.png", theme) for theme in (LIGHT, DARK))
    for path, theme in ((light, LIGHT), (dark, DARK)):
        with Image.open(path) as image:
            assert "#{:02x}{:02x}{:02x}".format(*image.convert("RGB").getpixel((0, 0))) == theme.surface
            assert len(image.convert("RGB").getcolors(2**24)) > 20
    assert DRAWN[name](tmp_path / "again.png", LIGHT).read_bytes() == light.read_bytes()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda path: throughput_against_perplexity(made_results(), path, "nothing"), "no row was evaluated on 'nothing'"),
        (lambda path: layer_errors([{"module": "a.0.b", "relative_error": None}], path), "no module of the report"),
        (lambda path: panels([HeatMap({}, "x", "y")], path), "the heat map holds no value"),
        (lambda path: curve({"a": []}, path, "x", "y"), "the curve holds no point"),
    ],
)
def test_nothing_to_draw_is_an_error(draw, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


def test_an_error_is_the_root_of_what_is_not_explained():
    assert module_error({"relative_error": 0.3, "explained_variance": 0.5}) == 0.3
    assert module_error({"explained_variance": 0.75}) == 0.5
    assert module_error({"explained_variance": -0.44}) == pytest.approx(1.2)
    assert module_error({"rank": 3}) is None


def test_a_heat_maps_paler_cells_are_the_smaller_ones(tmp_path):
    path = panels([HeatMap({(1, 1): 0.0, (2, 1): 1.0}, "x", "y")], tmp_path / "heat.png")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    row = pixels[pixels.shape[0] // 2 - 30]
    inside = row[int(len(row) * 0.3)], row[int(len(row) * 0.9)]
    assert inside[0] > inside[1]


@pytest.mark.parametrize(("highest", "expected"), [(99.0, "linear"), (101.0, "log")])
def test_values_more_than_tenfold_apart_are_drawn_on_a_logarithmic_scale(highest, expected):
    axes = _axes()
    Curves({"a": [(1, 10.0), (2, highest)]}, "x", "y").draw(axes, LIGHT)
    assert axes.get_yscale() == expected
    axes = _axes()
    HeatMap({(1, 1): 10.0, (2, 1): highest}, "x", "y").draw(axes, LIGHT)
    assert isinstance(axes.images[0].norm, LogNorm) == (expected == "log")
