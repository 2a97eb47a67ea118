"""Benchmark: our loaders beside those that people use instead."""
