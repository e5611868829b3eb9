"""The transformers side: a quantizer that swaps a plan's modules in, found without being imported.

In: a plan and a model without weights. Out: the model with its runtime modules; modeling_compress.py for elsewhere.
"""
