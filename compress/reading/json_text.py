"""JSON within limits. Python's own parser builds whatever it is given: a few bytes of brackets are a hundred of memory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20
MAX_VALUES = 1_000_000  # the plan of 80 layers of 64 expressions each, or the headers of 100,000 tensors
MAX_DEPTH = 130  # an expression may be 100 deep, and lies some ten brackets down in a config.json

# Possessive, and an open string goes to the end: no text makes it look at anything twice.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


def read(path: Path) -> Any:
    """The value in a file. Raises FileNotFoundError, or ValueError for what is no JSON or beyond the limits."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path}: {size:,} bytes of JSON; at most {MAX_BYTES:,} are read")
    return loads(path.read_bytes(), str(path))


def loads(text: bytes | str, origin: str) -> Any:
    """The value of a text that messages call `origin`. Raises ValueError where it is no JSON or beyond the limits.

    >>> loads("[" * 1000, "config.json")
    Traceback (most recent call last):
    ValueError: config.json: JSON nested deeper than 130
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    _count(raw, origin)
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{origin}: not JSON: {error.msg} (line {error.lineno})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{origin}: not UTF-8 (byte {error.start + 1})") from None
    except ValueError:  # Python refuses to convert integers of thousands of digits
        raise ValueError(f"{origin}: holds a number of more than 4,300 digits") from None


def check(path: Path, values: int = MAX_VALUES) -> None:
    """Raises ValueError where a file that another library will parse is beyond the limits."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path}: {size:,} bytes of JSON; at most {MAX_BYTES:,} are read")
    _count(path.read_bytes(), str(path), values)


def check_values(value: Any, origin: str, values: int = MAX_VALUES) -> None:
    """The same limits for what another library has parsed already. Raises ValueError."""
    level, count = [value], 1
    for _ in range(MAX_DEPTH + 1):
        level = [part for parent in level for part in _parts(parent)]
        count += len(level)
        if count > values:
            raise ValueError(f"{origin}: more than {values:,} values")
        if not level:
            return
    raise ValueError(f"{origin}: nested deeper than {MAX_DEPTH}")


def _parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _count(raw: bytes, origin: str, values: int = MAX_VALUES) -> None:
    """Raises ValueError where the text would make more, or more deeply nested, values than are read."""
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{origin}: {len(raw):,} bytes of JSON; at most {MAX_BYTES:,} are read")
    # A value and its key at most, for each comma: with more quotes than that it is no JSON, or too much.
    if raw.count(b'"') - raw.count(b'\\"') > 4 * values:
        raise ValueError(f"{origin}: more than {values:,} values of JSON")
    bare = _STRING.sub(b"", raw)
    brackets = bare.translate(None, _NO_BRACKET)
    if bare.count(b",") + len(brackets) // 2 > values:
        raise ValueError(f"{origin}: more than {values:,} values of JSON")
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"{origin}: JSON nested deeper than {MAX_DEPTH}")
