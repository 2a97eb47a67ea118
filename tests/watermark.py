"""Watermarks: batches that know their number, and a consumer that looks whether any was overwritten while it was held.

Before it: a pack and an engine. After it: tests/test_pipelines_handover.py and the GPU check.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from cache.store import Pack
from pipelines.request import Device, Engine, Request, Settings
from pipelines.tier import Tier

SIZE = 8
IMAGES = 1
HELD = 6
"""Batches that the consumer holds at most: more than an engine prepares ahead."""


def overwritten(pack: Pack, engine: Engine, device: Device, batches: int) -> int:
    """Pixels that were not what their batch was given when the consumer let go of it, of so many batches.

    The consumer holds a random number of batches, looks at each once more before it lets go, and never waits for the
    device: on a GPU the look is still queued when the memory goes back. It reads the count at the end.
    """
    everything, halvings = np.ones(len(pack), dtype=bool), np.zeros(len(pack), dtype=np.int32)
    settings = Settings(SIZE, 0, 1, IMAGES, 2, 2, device, Tier(pack, everything, halvings))
    chance, held = random.Random(0), deque[tuple[int, torch.Tensor]]()
    wrong = torch.zeros((), dtype=torch.int64, device="cuda" if device == "gpu" else "cpu")
    stream = engine(pack, marked(pack, batches), settings)
    for number, (_, images) in enumerate(stream):
        held.append((number, images))
        del images
        while len(held) > chance.randrange(HELD):
            wrong += look(*held.popleft(), wrong.device)
    while held:
        wrong += look(*held.popleft(), wrong.device)
    return int(wrong)


def look(number: int, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """How many values of a batch are not its number; on the device, where the threads engine's are copied as a loader does."""
    return (images.to(device) != number).sum()


def marked(pack: Pack, batches: int) -> Iterator[Request]:
    """Requests whose colour matrix is zero but for its constant, the request's number: every pixel says which it is."""
    for number in range(batches):
        colour = np.zeros((IMAGES, 1, 3, 4), dtype=np.float32)
        colour[..., 3] = number  # exact in float32 up to 2**24
        yield Request(
            ids=(np.arange(IMAGES) + number) % len(pack),
            geometry=np.tile(np.eye(3, dtype=np.float32), (IMAGES, 1, 1, 1)),
            colour=colour,
            halvings=np.zeros(IMAGES, dtype=np.int32),
            epoch=0,
            stop=number + 1,
        )
