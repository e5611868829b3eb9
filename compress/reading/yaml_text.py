"""YAML within limits: the parser's events are counted, aliases at the size of what they stand for, before anything is composed.

No YAML library limits them: nine lines of aliases are a thousand million values to whoever walks them. Keys that come twice, of
which YAML keeps the last, are an error with both lines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 256 * 2**10
MAX_VALUES = 20_000  # a table of ranks for every linear of 200 layers, some ten times over
MAX_DEPTH = 32
MAX_PLAIN = 1000  # characters of a number, date or word without quotes: YAML's integers to base 60 are quadratic work

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    """Numbers and dates that Python cannot hold are errors with their line."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        except (ValueError, OverflowError, TypeError, AttributeError, KeyError):
            raise yaml.constructor.ConstructorError(None, None, "a value that cannot be read", node.start_mark) from None


# Dates and `=` are no values of ours: they stay words.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith((":timestamp", ":value"))]
    for first, pairs in _Base.yaml_implicit_resolvers.items()
}


@dataclass
class _Open:
    """A list or mapping whose end has not come yet."""

    anchor: str | None
    mapping: bool
    before: int  # values counted when it began
    keys: dict[str, int] = field(default_factory=dict)  # of a mapping: line of each
    parts: int = 0  # keys and values so far


def read(path: Path) -> Any:
    """The plain data of a file. Raises FileNotFoundError, or ValueError with file and line (or byte)."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path}: {size:,} bytes of YAML; at most {MAX_BYTES:,} are read")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start + 1}); save it as UTF-8") from None
    return loads(text, str(path))


def loads(text: str, origin: str) -> Any:
    """The plain data of a text that messages call `origin`. Raises ValueError with the line.

    >>> loads("a: 1\\nb: 2\\na: 3", "r.yaml")
    Traceback (most recent call last):
    ValueError: r.yaml line 3: key 'a' is given already in line 1; keep one
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"{origin}: {len(text):,} characters of YAML; at most {MAX_BYTES:,} are read")
    try:
        _count(text, origin)
        return yaml.load(text, Loader=_Loader)  # a SafeLoader with fewer types
    except UnicodeEncodeError as error:
        raise ValueError(f"{origin}: half a character, an unpaired surrogate, at position {error.start}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise ValueError(f"{origin}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None


def _count(text: str, origin: str) -> None:
    """Walks the events. Raises ValueError for what would be too much, and for keys that come twice."""
    sizes: dict[str, int] = {}  # values that an alias of this anchor stands for
    stack: list[_Open] = []
    values = 0
    for event in yaml.parse(text, Loader=_Base):
        line = f"{origin} line {event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionEndEvent):
            done = stack.pop()
            if done.anchor is not None:
                sizes[done.anchor] = values - done.before + 1
            continue
        if isinstance(event, yaml.DocumentStartEvent) and values:
            raise ValueError(f"{line}: a second document begins; give one")
        if not isinstance(event, yaml.NodeEvent):
            continue
        values += _weight(event, sizes, line)
        if values > MAX_VALUES:
            raise ValueError(f"{line}: more than {MAX_VALUES:,} values, aliases counted at what they stand for")
        if stack and stack[-1].mapping:
            _key(stack[-1], event, line)
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent), values))
            if len(stack) > MAX_DEPTH:
                raise ValueError(f"{line}: nested deeper than {MAX_DEPTH}")
        elif isinstance(event, yaml.ScalarEvent) and event.anchor is not None:
            sizes[event.anchor] = 1


def _weight(event: Any, sizes: dict[str, int], line: str) -> int:
    """Values that one event adds. Raises ValueError for tags, and for an alias within its own anchor."""
    if isinstance(event, yaml.AliasEvent):
        if event.anchor not in sizes:
            raise ValueError(f"{line}: *{event.anchor} stands for nothing that is complete before it")
        return sizes[event.anchor]
    if event.tag is not None:
        raise ValueError(f"{line}: tag {event.tag!r} given; write plain values")
    if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > MAX_PLAIN:
        raise ValueError(f"{line}: {len(event.value):,} characters without quotes; at most {MAX_PLAIN:,}, or quote them")
    return 1


def _key(mapping: _Open, event: Any, line: str) -> None:
    """Takes note of a mapping's next part; every other one is a key. Raises ValueError for one that comes twice."""
    mapping.parts += 1
    if mapping.parts % 2 == 0:
        return
    if not isinstance(event, yaml.ScalarEvent):
        raise ValueError(f"{line}: a list, mapping or alias as a key; keys are plain words")
    number = event.start_mark.line + 1
    if event.value in mapping.keys:
        raise ValueError(f"{line}: key {event.value!r} is given already in line {mapping.keys[event.value]}; keep one")
    mapping.keys[event.value] = number
