"""pipelines/clock.py: where the time of a pass goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from greyhound.pipelines.loader import Clock


def test_the_clock_counts_waiting_and_images() -> None:
    class Item:
        whole = 3

    def slow() -> Iterator[Any]:
        for _ in range(4):
            time.sleep(0.02)
            yield Item()

    clock = Clock()
    for _ in clock.waits(slow()):
        time.sleep(0.01)
    assert clock.images == 12
    assert 0.08 <= clock.waiting < clock.seconds()
    assert clock.seconds() >= 0.12
