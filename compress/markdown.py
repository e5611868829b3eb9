"""Text that is not ours inside a Markdown file: it begins nothing of its own."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: object) -> str:
    """On one line, with no HTML, link or cell of its own.

    >>> plain("a|b\\n<script>")
    'a\\\\|b &lt;script>'
    """
    return inert(" ".join(str(text).split()))


def inert(line: str) -> str:
    """One line with its spaces as they are, and no HTML, link or cell of its own."""
    return _CONTROL.sub("", line).replace("<", "&lt;").replace("|", "\\|").replace("](", "]\\(")
