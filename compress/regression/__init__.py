"""Symbolic regression behind one function, whatever engine searches.

In: rows z and targets y. Out: fronts of certified expressions from simple to accurate.
"""
