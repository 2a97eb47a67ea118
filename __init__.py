"""Greyhound: from a folder of photographs to an image classifier. The rooms are `cache`, `pipelines` and `model`."""
