# pyright: strict
"""Many candidates, one measured choice: sweep, search, layers. Each is the twin of a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from compress.api.fit import load_recipe, plain_recipe

if TYPE_CHECKING:
    from compress.api.fit import AnyRecipe
    from compress.api.folders import AnyPath
    from compress.bars import Shown


def sweep(
    recipe: AnyRecipe,
    settings: Sequence[str] | Mapping[str, Sequence[Any]] = (),
    *,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    progress: Shown = None,
) -> list[dict[str, Any]]:
    """Fit a recipe at every combination of values, from one statistics pass; writes sweep.json and, for numbers, a plot.

    Args:
        recipe: a file, the name of a packaged recipe, plain data, or a Recipe.
        settings: {dotted key: values} or `["dotted.key=a,b,c"]`; without any, the lists in the recipe's rank rules.
        overrides: `dotted.key=value` with YAML values, for every point.
        fresh: forget an earlier run instead of taking its finished points over.
        progress: None, "bar", or a function (see `compress.progress.Progress`).

    Returns the points of sweep.json: "settings", "name" (its folder under the output), "parameters", "evaluation", …

    Raises ValueError where nothing varies, and as `fit` does.

    >>> import compress
    >>> compress.sweep("quickstart", {"seed": [1]})
    Traceback (most recent call last):
    ValueError: a sweep needs a key with several values, such as --set steps.0.rank.keep=0.8,0.6,0.4
    """
    from compress.bars import shown
    from compress.searching import sweep as sweeps
    from compress.searching.points import points_of_lists, points_of_settings

    plain = plain_recipe(recipe)
    points = [] if settings else points_of_lists(plain, overrides)
    points = points or points_of_settings(plain, settings, overrides)
    with shown(progress) as tell:
        return sweeps.fit_points(points, tell, fresh=fresh)


def search(
    recipe: AnyRecipe,
    *,
    overrides: Sequence[str] = (),
    metric: Literal["perplexity", "tasks"] = "perplexity",
    tolerance: float | None = None,
    tasks: AnyPath | None = None,
    search_windows: int = 32,
    test_windows: int = 64,
    length: int = 128,
    compare_uniform: bool = True,
    fresh: bool = False,
    progress: Shown = None,
) -> dict[str, Any]:
    """Choose each linear's rank by measuring, last layer first; writes ranks.json, which `rank: {table: …}` reads.

    Args:
        recipe: a file, the name of a packaged recipe, plain data, or a Recipe; its steps are low-rank.
        overrides: `dotted.key=value` with YAML values, as `--set` takes them.
        metric: perplexity of the first evaluation text, or accuracy on `tasks`.
        tolerance: growth of perplexity per linear (0.005), or loss of accuracy (0.01).
        tasks: a jsonl file of multiple-choice questions, for metric "tasks".
        search_windows, test_windows: the search sees the first windows of the text, the report the last ones.
        length: tokens per window.
        compare_uniform: measure uniform ranks of equal stored size too.
        fresh: forget an earlier search instead of continuing it.
        progress: None, "bar", or a function (see `compress.progress.Progress`).

    Returns the content of ranks.json: "ranks" by module, and "results", a row per variant with the metric on both splits.

    Raises FileNotFoundError or ValueError, one line per mistake.

    >>> import compress
    >>> compress.search("quickstart", tolerance=-1)
    Traceback (most recent call last):
    ValueError: tolerance: Input should be greater than or equal to 0; given -1
    """
    from compress import validation
    from compress.bars import shown
    from compress.searching import ranks

    loaded = load_recipe(recipe, overrides)
    sizes = {"search_windows": search_windows, "test_windows": test_windows, "length": length}
    given = {"metric": metric, "tolerance": tolerance, "tasks": tasks, "compare_uniform": compare_uniform, **sizes}
    options = validation.checked(ranks.SearchOptions, given)
    with shown(progress) as tell:
        return ranks.search(loaded, options, fresh=fresh, progress=tell)


def layers(
    recipe: AnyRecipe,
    *,
    overrides: Sequence[str] = (),
    budget: float | None = None,
    sizes: Mapping[str, Sequence[Any]] | None = None,
    search_windows: int = 32,
    test_windows: int = 64,
    length: int = 128,
    controls: bool = True,
    fresh: bool = False,
    progress: Shown = None,
) -> dict[str, Any]:
    """Choose which layers to replace by measuring, least nll for what is saved first; writes layers.json and layers.png.

    Args:
        recipe: a file, the name of a packaged recipe, plain data, or a Recipe; one step that replaces MLPs or crystallizes
            attention.
        overrides: `dotted.key=value` with YAML values, as `--set` takes them.
        budget: fraction of the targeted layers' cost that may remain; by default all are replaced, for the curve.
        sizes: {an option of the step: its values}; each layer may take any of them.
        search_windows, test_windows: choices see the first windows of the first evaluation text, the curves are of the last.
        length: tokens per window.
        controls: draw an affine map and pruning of equal cost too.
        fresh: forget an earlier run instead of continuing it.
        progress: None, "bar", or a function (see `compress.progress.Progress`).

    Returns the content of layers.json: "layers" and "steps" of a recipe that replaces them, "families", the curves.

    Raises FileNotFoundError or ValueError, one line per mistake; RuntimeError where the model overflows before the budget.

    >>> import compress
    >>> compress.layers("layers_auto", budget=2)
    Traceback (most recent call last):
    ValueError: budget: Input should be less than 1; given 2
    """
    from compress import validation
    from compress.bars import shown
    from compress.searching import layers as choices

    loaded = load_recipe(recipe, overrides)
    measured = {"search_windows": search_windows, "test_windows": test_windows, "length": length}
    given = {"budget": budget, "controls": controls, "sizes": dict(sizes or {}), **measured}
    options = validation.checked(choices.LayerOptions, given)
    with shown(progress) as tell:
        return choices.choose_layers(loaded, options, fresh=fresh, progress=tell)
