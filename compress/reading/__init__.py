"""Text that a stranger may have written, read within limits: depth, size and values are counted before they are built.

In: JSON, YAML and safetensors headers. Out: plain data, or one line that says where and what.
"""
