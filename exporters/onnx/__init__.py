"""A checkpoint as an ONNX graph with its KV cache in and out.

In: a checkpoint folder. Out: model.onnx and what its clients read; the graph in onnxruntime.
"""
