"""One value of plain data by its dotted name, as --set gives it."""

from __future__ import annotations

from typing import Any

from compress.reading import yaml_text


def set_value(root: Any, override: str) -> None:
    """Apply one `steps.0.rank.keep=0.6` to plain data in place; missing mappings on the way are created."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ValueError(f"--set {override!r}: write dotted.key=value, such as steps.0.rank.keep=0.6")
    at: Any = root
    for position, key in enumerate(keys):
        place: Any = key
        if isinstance(at, list):
            if not key.lstrip("-").isdigit() or not -len(at) <= int(key) < len(at):
                raise ValueError(f"--set {override!r}: {key!r} is no index of a list of {len(at)}")
            place = int(key)
        elif not isinstance(at, dict):
            raise ValueError(f"--set {override!r}: {'.'.join(keys[:position])} is {at!r}, which has no keys")
        if position == len(keys) - 1:
            at[place] = yaml_text.loads(text, f"--set {override!r}")
            return
        if isinstance(at, dict) and not isinstance(at.get(place), (dict, list)):
            at[place] = {}
        at = at[place]
