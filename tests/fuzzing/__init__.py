"""What strangers write, at random: plans, configs, expressions, results, safetensors headers, recipes, rows of text.

`python -m fuzzing --cases 100000 --journal FILE`, with tests/ on PYTHONPATH, runs the long form and goes on where an earlier
run stopped; the slice of `test_slice.py` is its beginning.
"""
