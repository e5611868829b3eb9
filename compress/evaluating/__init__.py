"""What a model is worth and what it costs.

In: a model and token windows, questions, or a folder. Out: perplexity, KL, accuracy, counted parameters and multiply-adds.
"""
