"""Where the time of a pass over batches goes: into waiting for data, or into using it.

Before it: a stream of batches. After it: train's progress bar and metrics, and the benchmark.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from greyhound.pipelines.loader import Batch


class Clock:
    """Measures a pass over batches: seconds in all, seconds spent waiting for data, images of all ranks."""

    def __init__(self) -> None:
        """Start it."""
        self.started = time.perf_counter()
        self.waiting = 0.0
        self.images = 0

    def seconds(self) -> float:
        """Since the clock was made."""
        return time.perf_counter() - self.started

    def note(self) -> str:
        """Images a second, and the share of the time that went into waiting."""
        seconds = self.seconds()
        return f"{self.images / seconds:.0f} img/s, {self.waiting / seconds:.1%} waiting for data"

    def waits(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time that each takes to come is waiting."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waiting += time.perf_counter() - asked
            if batch is None:
                return
            self.images += batch.global_batch_size
            yield batch
