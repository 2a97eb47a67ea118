"""Benchmark: the same augmentation by every engine, every tier and the loaders that people use instead, in one run."""
