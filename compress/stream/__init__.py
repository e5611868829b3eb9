"""A forward and backward pass with one decoder layer in memory, and the taps that read activations on the way.

In: shards and tokens. Out: hidden states layer by layer, statistics.
"""
