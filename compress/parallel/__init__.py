"""Several processes on one fit: who computes what, and sums that come out the same whoever did.

In: windows of tokens, values by lane. Out: the same bytes for any number of processes.
"""

from __future__ import annotations

import os


def several() -> bool:
    """Whether torchrun started this process as one of several; known before anything is joined."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
