"""Random numbers as a function: Philox4x32-10, counter-based, vectorised over numpy arrays.

Before it: nothing. After it: `augment` draws an image's augmentation, `order` shuffles an epoch. A counter-based
generator has no state, so the numbers of one image never depend on which others were asked for, or when.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
_LOW: Final = np.uint64(0xFFFFFFFF)
_SHIFT: Final = np.uint64(32)


def philox(counter: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike], seed: int) -> NDArray[np.uint32]:
    """Four random 32-bit words for every counter.

    counter: four arrays of unsigned 32-bit integers that broadcast to one shape `[...]`.
    seed: the key, 0 <= seed < 2**64.
    Returns uint32 `[..., 4]`, equal to the reference implementation's words.
    """
    a, b, c, d = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    for turn in range(_ROUNDS):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (right >> _SHIFT) ^ b ^ _round_key(seed, turn, 0),
            right & _LOW,
            (left >> _SHIFT) ^ d ^ _round_key(seed, turn, 1),
            left & _LOW,
        )
    return np.stack([a, b, c, d], axis=-1).astype(np.uint32)


def uniform(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Map 32-bit words to the open interval (0, 1): `(word + 1/2) / 2**32`; the shape stays."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32


def _round_key(seed: int, turn: int, half: int) -> np.uint64:
    return np.uint64(((seed >> (32 * half)) + turn * _WEYL[half]) & 0xFFFFFFFF)
