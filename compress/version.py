"""What files are stamped with: the version of this package, of a checkpoint's plan, and the name transformers knows us by."""

__version__ = "0.1.0"

FORMAT_VERSION = 1  # of the plan in config.json
QUANT_METHOD = "compress"
