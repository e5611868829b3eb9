"""Expressions for people: distil any callable, explain a module around one token, look at and pick from fronts.

In: a module, a checkpoint or rows. Out: expressions as text, LaTeX, sympy and modules.
"""
