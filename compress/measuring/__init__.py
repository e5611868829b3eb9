"""Interleaved measurements of what was exported, and of a report that is measured again.

In: checkpoint folders. Out: results.json; findings.
"""
