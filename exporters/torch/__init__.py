"""A checkpoint as one readable standalone file.

In: a checkpoint folder. Out: model.py that needs torch alone, and its weights.
"""
