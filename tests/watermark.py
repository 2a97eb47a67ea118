"""Watermarks: batches that know their number, and a consumer that looks whether any was overwritten while it was held.

Before it: a pack and an engine. After it: tests/test_pipelines_handover.py and the GPU check.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from greyhound.cache.store import Pack
from greyhound.pipelines.decoded import ImageCache
from greyhound.pipelines.engine import BatchSpec, Device, Engine, EngineConfig, ToDevice
from greyhound.pipelines.loader import torch_device

SIZE = 8
IMAGES = 1
HELD = 6
"""Batches that the consumer holds at most: more than an engine prepares ahead."""
PAUSES = 50
"""One look of so many, on a GPU, is queued behind a pause: it happens when the memory has long gone back."""
PAUSE = 20_000_000
"""Cycles of the GPU: about ten milliseconds."""


def overwritten(pack: Pack, engine: Engine, device: Device, batches: int, careless: bool = False) -> int:
    """Pixels that were not what their batch was given when the consumer let go of it, of so many batches.

    The consumer holds a random number of batches, looks at each once more before it lets go, and never waits for the
    device. It reads the count at the end. careless: it looks on a stream of its own, for which nobody waits, and holds no
    source of a copy; on a GPU that must be found.
    """
    everything, whole = np.ones(len(pack), dtype=bool), np.zeros((len(pack), 2), dtype=np.int32)
    config = EngineConfig(SIZE, 0, 1, IMAGES, 2, 2, device, ImageCache(pack, everything, whole))
    chance, held = random.Random(0), deque[tuple[int, torch.Tensor]]()
    wrong = torch.zeros((), dtype=torch.int64, device=torch_device(device))
    to_device = ToDevice(wrong.device)
    aside = torch.cuda.Stream() if careless else None  # type: ignore[no-untyped-call]

    def look(number: int, images: torch.Tensor) -> None:
        with torch.cuda.stream(aside):  # of None: where it is
            if device == "gpu" and not chance.randrange(PAUSES):
                torch.cuda._sleep(PAUSE)  # type: ignore[no-untyped-call]
            there = images.to(wrong.device, non_blocking=True) if careless else to_device(images)
            wrong.add_((there != number).sum())

    for number, (_, images) in enumerate(engine(pack, marked(pack, batches), config)):
        held.append((number, images))
        del images
        while len(held) > chance.randrange(HELD):
            look(*held.popleft())
    while held:
        look(*held.popleft())
    if device == "gpu":
        torch.cuda.synchronize()
    return int(wrong)


def marked(pack: Pack, batches: int) -> Iterator[BatchSpec]:
    """Batches whose colour matrix is zero but for its constant, the batch's number: every pixel says which it is."""
    for number in range(batches):
        colour = np.zeros((IMAGES, 1, 3, 4), dtype=np.float32)
        colour[..., 3] = number  # exact in float32 up to 2**24
        yield BatchSpec(
            ids=(np.arange(IMAGES) + number) % len(pack),
            geometry=np.tile(np.eye(3, dtype=np.float32), (IMAGES, 1, 1, 1)),
            colour=colour,
            log2_reduction=np.zeros((IMAGES, 2), dtype=np.int32),
            epoch=0,
            stop=number + 1,
        )
