"""A pack in, batches on the device out: pure draws and order, one graph, two engines."""
