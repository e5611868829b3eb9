"""Generated Python: what an architecture computes as values, classes copied with what they need, text laid out.

In: a config, classes, lines. Out: source text.
"""
