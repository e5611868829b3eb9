"""Expressions as data: a table of operations, trees that are safe to read from disk, programs that everything runs.

In: sympy expressions or JSON trees. Out: a straight-line Program; its values, bounds, text and schedule.
"""
