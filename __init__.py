"""Greyhound: from a folder of photographs to an image classifier, by way of `cache`, `pipelines`, `model`."""
