"""Low-rank methods for linears, one file each.

In: a weight and moments of what it reads. Out: factors.
"""
