"""The packages beside this file are collected as nobody's tests: they are installed into a folder of each test."""

collect_ignore = ["random_projection", "gated_mlp"]
