"""The order of an epoch, its batches, and a rank's share: pure functions.

Before them: the ids of a split, from the pack. After them: `loader` asks for one batch after another. The
order of the images survives a change of batch size or of ranks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from greyhound.pipelines.augment import philox

_ORDER = 0xFFFFFFFF  # the counter's last word; `augment` counts its blocks up from 0 and never comes near


def epoch_order(ids: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Shuffle `ids` for one epoch.

    ids: int64 `[n]`, each at most once. Returns a permutation. Every id is sorted by 64 random bits of
    its own, drawn from (seed, epoch, id): adding or removing an image never reorders the others.
    """
    ids = np.sort(ids)
    words = philox((ids, epoch, 0, _ORDER), seed).astype(np.uint64)
    return ids[np.argsort(words[:, 0] << np.uint64(32) | words[:, 1], kind="stable")]


def even_bounds(count: int, batch_size: int, start: int = 0) -> list[tuple[int, int]]:
    """Cut the positions `start..count` into the fewest batches of at most `batch_size`, as equal as can be.

    Training uses this: no epoch ends in a batch of one image, whose statistics would be the last that
    BatchNorm sees. Cutting again from any of its own bounds gives the same remaining bounds.
    """
    left = count - start
    batches = -(-left // batch_size)
    sizes = [(left + k) // batches for k in range(batches)]
    stops = np.cumsum(sizes, dtype=np.int64) + start
    return [(int(stop) - size, int(stop)) for stop, size in zip(stops, sizes, strict=True)]


def full_bounds(count: int, batch_size: int, start: int = 0) -> list[tuple[int, int]]:
    """Cut the positions `start..count` into full batches and a short last one, as evaluation does."""
    return [(low, min(low + batch_size, count)) for low in range(start, count, batch_size)]


def rank_share(ids: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """The part of one global batch that `rank` of `world_size` reads; all of them together are the batch."""
    return ids[rank::world_size]
