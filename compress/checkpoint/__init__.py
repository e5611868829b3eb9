"""Files on disk: found, read lazily, written whole or not at all.

In: folders and tensors. Out: tensors by name, shards with an index, unit files.
"""
