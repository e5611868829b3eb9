"""Text that is not ours inside a Markdown file: one line of it, that begins nothing of its own."""

from __future__ import annotations


def plain(text: object) -> str:
    """On one line, with no HTML, link or cell of its own.

    >>> plain("a|b\\n<script>")
    'a\\\\|b &lt;script>'
    """
    line = " ".join(str(text).split())
    return line.replace("<", "&lt;").replace("|", "\\|").replace("](", "]\\(")
