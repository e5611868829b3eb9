"""Low-rank methods for linears, one file each. What a method of another package builds on is imported from here.

In: a weight and moments of what it reads. Out: factors.
"""

from __future__ import annotations

from compress.methods.linear._low_rank import LowRankMethod, merged_inputs
from compress.methods.linear._rank_rule import RankRule

__all__ = ["LowRankMethod", "RankRule", "merged_inputs"]
