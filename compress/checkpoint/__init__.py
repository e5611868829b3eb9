"""Files on disk: found, read lazily, written whole or not at all, and never over what is the user's.

In: folders and tensors. Out: tensors by name, shards with an index, unit files.
"""
