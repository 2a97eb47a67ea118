"""The order of an epoch, its batches, and a rank's share: each place is found by itself, from (seed, epoch).

Before it: the number of images. After it: `loader` asks which images a batch has. The order survives a change
of batch size or of ranks, not of the number of images.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from greyhound.pipelines.augment import philox

_ROUNDS: Final = 12  # after 6, some orders of 3 to 6 images are likelier; after 8 no test sees it
_ORDER: Final = 0xFFFFFFFF  # the counter's last word; the blocks of an image's numbers count up from 0


def order_at(positions: NDArray[np.int64], count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Which of `count` images each position of an epoch's order has; over all positions, a permutation.

    positions: int64 `[n]`, of 0..count; count < 2**32. Each is found by itself, from (count, seed, epoch),
    without a table of the others: a resumed training and each rank ask for theirs alone.

    A Feistel network on a square of at least `count` places, whose round functions are tables of Philox's
    words. A position that it takes outside of `count` goes through again until it is inside.
    Black, Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
    """
    side = 2 * math.ceil(math.sqrt(count) / 2)  # even: on an odd square no permutation would be an odd one
    tables = _round_tables(side, seed, epoch)

    def permute(places: NDArray[np.int64]) -> NDArray[np.int64]:
        left, right = np.divmod(places, side)
        for table in tables:
            moved = (left + table[right]).view(np.uint64)
            # less than `side`: what is not wraps to a huge number
            left, right = right, np.minimum(moved, moved - np.uint64(side)).view(np.int64)
        return left * side + right

    places = permute(positions)
    while len(outside := np.flatnonzero(places >= count)):
        places[outside] = permute(places[outside])
    return places


@lru_cache(maxsize=2)
def _round_tables(side: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Of each round a number in 0..side for each of `side` places: int64 `[rounds, side]`."""
    words = philox((np.arange(-(-_ROUNDS * side // 4)), epoch, 0, _ORDER), seed).astype(np.uint64)
    numbers = words.ravel()[: _ROUNDS * side] * np.uint64(side) >> np.uint64(32)
    return numbers.astype(np.int64).reshape(_ROUNDS, side)


def epoch_order(ids: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """All of `ids` as an epoch shuffles them, whatever their order. ids: int64 `[n]`, each at most once."""
    return np.sort(ids)[order_at(np.arange(len(ids)), len(ids), seed, epoch)]


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
