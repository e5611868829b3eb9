"""What may stand for an attention, one file each.

In: the attention and moments of its values or inputs. Out: another attention function, or another cache.
"""
