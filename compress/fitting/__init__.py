"""From a recipe to a checkpoint; `run.py` reads top to bottom.

In: a recipe and the original model. Out: a checkpoint folder that plain from_pretrained loads, and its report.
"""
