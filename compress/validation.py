"""What is said about a mistake in a recipe: what was given, what is allowed, the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

Options = TypeVar("Options", bound=BaseModel)


def checked(model: type[Options], given: Mapping[str, Any]) -> Options:
    """The options of a command. Raises ValueError with one line per mistake."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ValueError("\n".join(explain(error, model))) from None


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per mistake pydantic found in `model`, with the nearest allowed key for an unknown one."""
    return [f"{'.'.join(map(str, item['loc']))}: {_message(item, model)}".removeprefix(": ") for item in error.errors()]


def _message(item: Any, model: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        *path, key = item["loc"]
        return f"unknown key {key!r}; {nearest(str(key), _section(model, path).model_fields)}"
    message = item["msg"].removeprefix("Value error, ")
    given = item["input"]
    return message if isinstance(given, (dict, list)) or item["type"] == "value_error" else f"{message}; given {given!r}"


def _section(model: type[BaseModel], path: Sequence[object]) -> type[BaseModel]:
    """The model class that a location inside `model` belongs to."""
    for key in path:
        annotation = model.model_fields[str(key)].annotation if str(key) in model.model_fields else None
        inner = [c for c in _flatten(annotation) if isinstance(c, type) and issubclass(c, BaseModel)]
        model = inner[0] if inner else model  # an index into a list stays in the list's section
    return model


def _flatten(annotation: object) -> list[object]:
    inner = [part for argument in get_args(annotation) for part in _flatten(argument)]
    return [annotation, *inner]


def nearest(given: str, allowed: Iterable[str]) -> str:
    """The nearest of the allowed names, and all of them; empty where there are none."""
    options = list(allowed)
    near = difflib.get_close_matches(given, options, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + (f"allowed: {', '.join(options)}" if options else "")
