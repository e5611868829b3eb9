"""Where what belongs to a folder stands: beside it, under its name; inside it only where nothing can stand beside it."""

from __future__ import annotations

import os
from pathlib import Path


def beside(folder: Path, before: str, after: str) -> Path:
    """`before` + NAME + `after` beside the folder NAME, links resolved; inside a mount point, or where nothing may be written
    beside it, `.compress` + `after`.
    """
    real = folder.expanduser().resolve()
    above = next(parent for parent in real.parents if parent.exists()) if real.parents else real
    if real.exists() and (os.path.ismount(real) or not os.access(above, os.W_OK)):
        return real / f".compress{after}"
    return real.with_name(f"{before}{real.name}{after}")
