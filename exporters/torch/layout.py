"""The layout of the standalone file: black's, with comments and docstrings kept to its width."""

from __future__ import annotations

from textwrap import fill

import black

WIDTH = 128
_MODE = black.Mode(line_length=WIDTH)


def laid_out(source: str) -> str:
    """The file as black sets it. Black leaves long comments and docstrings as they are: that part is done here.

    >>> print(laid_out("f(" + "a" * 100 + "())  # " + "b" * 40 + "\\n")[:5])
    # bbb
    """
    return black.format_str(_kept_to_width(source), mode=_MODE)


def _kept_to_width(source: str) -> str:
    """Of lines that are too long the comment moves to a line above its code, and a docstring is filled."""
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
