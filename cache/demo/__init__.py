"""A drawn data set with planted faults: `faults.draw_demo` is the door."""
