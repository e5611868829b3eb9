"""The mathematics in float64: no files, no processes, nothing of a model but its matrices.

In: weights, moments, samples. Out: factors, ranks, corrections, what to prune.
"""
