"""The points of a sweep: the product of lists of values, each point a checked recipe with a folder of its own."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.reading import yaml_text
from compress.recipe import Recipe, parse_recipe, read_yaml, set_value

# The keys of a rank rule whose values are single numbers, so that a list can only mean one checkpoint for each.
RANK_LISTS = ("rank", "keep", "budget", "explained_variance")
MOST_POINTS = 1000  # of one sweep


@dataclass(frozen=True)
class Point:
    """One recipe of a sweep: the values that make it, and the folder under the sweep's output that holds its checkpoint."""

    settings: Mapping[str, Any]
    name: str
    recipe: Recipe


Origin = str | Path | Mapping[str, Any]  # a recipe file, or plain data
Settings = Sequence[str] | Mapping[str, Sequence[Any]]  # ["key=a,b,c"], or {"key": [a, b, c]}


def points_of_settings(recipe: Origin, settings: Settings, overrides: Sequence[str] = ()) -> list[Point]:
    """The points of `sweep`, checked. Raises ValueError for settings that vary nothing or do not make a recipe."""
    plain, origin = _read(recipe, overrides)
    axes = dict(settings) if isinstance(settings, Mapping) else dict(parse_setting(setting) for setting in settings)
    if empty := [key for key, values in axes.items() if not values]:
        raise ValueError(f"{empty[0]}: no values; give one or several")
    if all(len(values) == 1 for values in axes.values()):
        raise ValueError("a sweep needs a key with several values, such as --set steps.0.rank.keep=0.8,0.6,0.4")
    return points_of(plain, axes, origin)


def parse_setting(setting: str) -> tuple[str, list[Any]]:
    """("key", [values]) of `key=a,b,c`; commas inside brackets belong to a value. Raises ValueError for anything else.

    >>> parse_setting("steps.0.rank.keep=0.8,0.6")
    ('steps.0.rank.keep', [0.8, 0.6])
    """
    key, equals, text = setting.partition("=")
    try:
        # YAML splits at commas and types the values in one go, and leaves those inside brackets together.
        values = yaml_text.loads(f"[{text}]", setting) if equals and key else None
    except ValueError:
        values = None
    if not values:
        raise ValueError(f"--set {setting!r}: write dotted.key=a,b,c, such as steps.0.rank.keep=0.8,0.6,0.4")
    return key, values


def rank_lists(plain: Any) -> dict[str, list[Any]]:
    """{dotted key: values} of the rank rules in plain recipe data that hold a list instead of one value.

    Raises ValueError for an empty list; what else is wrong with the data is left to the recipe's own check.
    """
    steps = plain.get("steps") if isinstance(plain, Mapping) else None
    found = {}
    for index, step in enumerate(steps if isinstance(steps, list) else []):
        rule = step.get("rank") if isinstance(step, Mapping) else None
        if isinstance(rule, list):  # a list of bare integers
            found[f"steps.{index}.rank"] = rule
        elif isinstance(rule, Mapping):
            found |= {f"steps.{index}.rank.{key}": rule[key] for key in RANK_LISTS if isinstance(rule.get(key), list)}
    for key, values in found.items():
        if not values:
            raise ValueError(f"{key}: the list is empty; give one value or several")
    return found


def points_of_lists(recipe: Origin, overrides: Sequence[str] = ()) -> list[Point]:
    """The points of a recipe whose rank rules hold lists, named by their values alone; none where no rule does.

    `overrides` are `key=value` as for one recipe. Raises ValueError where they or the lists make no recipe.
    """
    plain, origin = _read(recipe, overrides)
    axes = rank_lists(plain)
    return points_of(plain, axes, origin, bare=True) if axes else []


def _read(recipe: Origin, overrides: Sequence[str]) -> tuple[Any, str]:
    """(plain data with the overrides, what messages call it)."""
    named = isinstance(recipe, (str, Path))
    plain = read_yaml(recipe) if named else copy.deepcopy(recipe)
    for override in overrides if isinstance(plain, dict) else ():
        set_value(plain, override)
    return plain, str(recipe) if named else "recipe"


def points_of(plain: Any, axes: Mapping[str, Sequence[Any]], origin: str = "recipe", bare: bool = False) -> list[Point]:
    """The recipes of all combinations, checked; folders are named `key=value,…`, or by the values alone where `bare`.

    Raises ValueError, naming `origin`, for a combination that is no recipe, and for two that would share a folder.
    """
    if (count := math.prod(len(values) for values in axes.values())) > MOST_POINTS:
        raise ValueError(f"{count:,} points, a checkpoint each; at most {MOST_POINTS:,}: give fewer values")
    points = []
    # What holds for every point distinguishes none; a lone point still needs a name.
    varied = [key for key, values in axes.items() if len(values) > 1] or list(axes)
    for combination in itertools.product(*axes.values()):
        settings = dict(zip(axes, combination, strict=True))
        made = copy.deepcopy(dict(plain)) if isinstance(plain, Mapping) else plain
        for key, value in settings.items():
            set_value(made, f"{key}={json.dumps(value)}")  # JSON is YAML: the value is read back as it was
        recipe = parse_recipe(made, origin=origin)
        shown = {key: settings[key] for key in varied}
        name = ",".join(_slug(v) if bare else f"{short_key(key, varied)}={_slug(v)}" for key, v in shown.items())
        points.append(Point(shown, name, recipe.model_copy(update={"output": recipe.output / name})))
    # Values that differ can make one name, such as a/b and a_b; the second point would replace the first.
    twice = [p.name for i, p in enumerate(points) if p.name in {q.name for q in points[:i]}]
    if twice:
        raise ValueError(f"two points of the sweep are named {twice[0]!r}; give each value once")
    return points


def short_key(key: str, keys: Sequence[str]) -> str:
    """The fewest last parts of a dotted key that no other key ends with."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        tail = parts[-count:]
        if sum(other.split(".")[-count:] == tail for other in keys) == 1:
            return ".".join(tail)
    return key


def _slug(value: Any) -> str:
    # A value may hold slashes, spaces or brackets, which have no place in the name of a folder.
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return re.sub(r"[^\w.+-]+", "_", text).strip("_") or "_"
