"""Symbolic-regression engines: one file each, with the operators it knows and `prepare(z, options)`.

`prepare` does once what all outputs share and returns `search(y, seed) → (proposals, notes)`; a proposal is a tree over the
standardised inputs z (n, I), its constants, and the name of what proposed it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from compress.symbolic.operations import Tree

Proposal = tuple[Tree, list[float], str]
Search = Callable[[np.ndarray, int], tuple[list[Proposal], list[str]]]
