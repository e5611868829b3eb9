"""Layout of generated source: indentation, and calls broken over lines as a formatter would break them."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import dedent, fill, indent

WIDTH = 128


def text(block: str) -> str:
    """A template without its common indentation and outer blank lines."""
    return dedent(block).strip("\n")


def in_place(lines: Sequence[str], spaces: int) -> str:
    """Lines to stand in a template at an indentation of `spaces`, where the first one is indented already."""
    return indent("\n".join(lines), " " * spaces).lstrip()


def call(
    name: str, arguments: Sequence[str], spaces: int, width: int = WIDTH, *, tail: str = "", comment: str = ""
) -> list[str]:
    """Lines of `name(arguments)` at an indentation of `spaces`: one where it fits, else the arguments in lines of their own.

    >>> call("f", ["a", "b"], 0, tail=",", comment="  # 1")
    ['f(a, b),  # 1']
    >>> call("function", ["alpha", "beta"], 0, width=20)
    ['function(', '    alpha, beta', ')']
    >>> call("f", ["alpha", "beta"], 0, width=10)
    ['f(', '    alpha,', '    beta,', ')']
    """
    margin = " " * spaces
    one = f"{margin}{name}({', '.join(arguments)}){tail}"
    if len(one) <= width:
        # A call is not broken for the sake of its comment.
        return [one + comment if len(one + comment) <= width else one]
    inner = [f"{margin}    {', '.join(arguments)}"]
    if len(inner[0]) > width:
        inner = [line for argument in arguments for line in broken(argument, spaces + 4, width, ",")]
    return [f"{margin}{name}({comment}", *inner, f"{margin}){tail}"]


def broken(expression: str, spaces: int, width: int = WIDTH, tail: str = "") -> list[str]:
    """Lines of an expression that may be a call or a list, broken at its own commas where it is too long."""
    margin = " " * spaces
    # Only what ends in a bracket has commas to be broken at.
    if len(margin + expression + tail) <= width or expression[-1:] not in (")", "]"):
        return [margin + expression + tail]
    opening = _opening(expression)
    parts = split_commas(expression[opening + 1 : -1])
    # A single argument would be as long in a line of its own.
    if len(parts) == 1:
        return [margin + expression + tail]
    inner = [line for part in parts for line in broken(part, spaces + 4, width, ",")]
    return [margin + expression[: opening + 1], *inner, margin + expression[-1] + tail]


def fit(source: str) -> str:
    """Lines that are too long: a comment moves to a line above its code, a docstring is filled.

    >>> print(fit("a" * 100 + "  # " + "b" * 40)[:5])
    # bbb
    """
    lines, inside = [], False
    for line in source.splitlines():
        margin = " " * (len(line) - len(line.lstrip()))
        code, mark, comment = line.partition("  # ")
        prose = inside or line.lstrip().startswith('"""')
        if len(line) <= WIDTH:
            lines.append(line)
        elif prose:
            lines.append(fill(line.strip(), WIDTH, initial_indent=margin, subsequent_indent=margin))
        else:
            lines += [margin + "# " + comment, code] if mark else [line]
        # One mark opens or closes a docstring; two are a docstring of one line.
        inside ^= line.count('"""') == 1
    return "\n".join(lines)


def split_commas(arguments: str) -> list[str]:
    """The top-level parts of a comma-separated list.

    >>> split_commas("a, f(b, c), [d, e]")
    ['a', 'f(b, c)', '[d, e]']
    """
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(arguments):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(arguments[start:i].strip())
            start = i + 1
    return [*parts, arguments[start:].strip()] if arguments[start:].strip() else parts


def _opening(expression: str) -> int:
    """Position of the bracket that the last character closes."""
    depth = 0
    # Backwards, to the bracket at the depth of the last one.
    for i in range(len(expression) - 1, -1, -1):
        depth += (expression[i] in ")]}") - (expression[i] in "([{")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced brackets in {expression!r}")
