"""What is said about a mistake: what was given, what is allowed, the nearest match; and the types that foreign values pass."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError

# All that a checkpoint can say ends up in shapes and generated source: nothing but these types passes.
Size = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*$", max_length=500)]  # of a module, dotted

Options = TypeVar("Options", bound=BaseModel)


def checked(model: type[Options], given: Any) -> Options:
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
    return message if isinstance(given, (dict, list)) or item["type"] == "value_error" else f"{message}; given {_short(given)}"


def _short(given: object) -> str:
    """A value as people read it: one of a stranger may be megabytes."""
    text = repr(given) if not isinstance(given, str) else repr(given[:200])
    return text if len(text) <= 210 else f"{text[:200]}…"


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
