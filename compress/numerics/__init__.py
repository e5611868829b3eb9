"""The mathematics, without I/O."""
