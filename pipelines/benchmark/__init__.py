"""Benchmark: the same augmentation by every engine and by the loaders that people use instead, in one run."""
