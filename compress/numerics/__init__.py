"""The mathematics, without I/O, in float64.

In: weights, moments, samples. Out: factors, ranks, corrections, what to prune.
"""
