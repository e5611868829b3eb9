"""What every method and every kind must hold on every architecture: a matrix made of the registries, nothing listed by hand.

In: `compress.methods.registry`, `compress.kinds.registry` (entry points of other packages included), the rows of
`compress.architecture`, and the files of `conformance.checks`, one property each. Out: a pairwise slice for pytest, the whole
matrix by `make conformance`, and its summary in docs/numbers/conformance.json.
"""
