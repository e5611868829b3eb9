"""The mathematics: tensors in, tensors out, float64; no files, no processes, nothing of a model but its matrices."""
