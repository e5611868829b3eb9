"""What may stand for an MLP: pruned channels, affine maps, expressions, controls; one file each.

In: the MLP, moments and samples of its input and output. Out: a module in its place.
"""
