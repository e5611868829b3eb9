"""The public Python API, the twin of every command; `compress` hands its names out lazily.

In: recipes, checkpoints, models in memory. Out: checkpoints as objects, results as plain data.
"""
