"""Many candidates, one measured choice: ranks, layers, sweeps.

In: a recipe and what may vary. Out: ranks.json, layers.json, sweep.json, with the curves they were chosen from.
"""
