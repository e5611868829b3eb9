"""What runs at inference; imports torch only, because the classes' source is copied into files that stand alone.

In: activations. Out: activations of the same shape; each class is built by a kind of `compress.kinds`.
"""
