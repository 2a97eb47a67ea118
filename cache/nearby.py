"""Which pictures may be twins: those whose low waves are alike, searched without comparing all with all.

Before it: thumbnails. After it: `twins` aligns the pairs that are proposed here, and decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from greyhound.cache.overlay import crop_windows

Indices = NDArray[np.int64]
Waves = NDArray[np.int16]
"""Low waves `[n, 48]` in whole numbers, each of length _UNIT."""

THUMBNAIL: Final = 16
"""Side of the thumbnail that near-duplicates are told by."""
ALIKE: Final = 0.85
"""Cosine of the low waves of two thumbnails from which a pair is looked at closely. Measured on 522 pictures,
drawn and photographed, with 5 % of both sides cropped: the lowest 0.915 (docs/log.md)."""
BRIGHTNESS: Final = 14.0
"""Levels of mean luma by which a crop may differ; with 5 % cropped the farthest of 522 was 13.2."""
WHOLE: Final = 20_000
"""Pictures up to which all are compared with all. Of more, each is compared with those in cells near it."""
REACH: Final = 0.14
"""How far beyond its border with another a cell is searched, where vectors have length 1. Of 1,775 planted
twins that comparing all with all finds one was missed, among 100,000 and among 300,000 (docs/log.md)."""
_UNIT: Final = 4000
"""Length of the low waves in whole numbers. A sum of products stays below 2**24, so float32 holds it exactly:
the same pairs are found whatever processor adds them up, in any order, on any number of threads."""
_SURE: Final = 0.999
"""Likeness of pairs that no others displace: who has enough of them is compared with no more."""
_WAVES: Final = 7
WIDTH: Final = _WAVES**2 - 1
"""Low waves of a picture."""
_EVEN: Final = _WAVES * (_WAVES // 2 + 1) - 1
"""So many of the low waves, the first, are the same in a mirror."""
_ROWS, _COLUMNS, _BATCH = 512, 1024, 4096


def quantised(shades: NDArray[np.float32]) -> Waves:
    """Luma `[n, 16, 16]` from afar, as `candidates` compares it."""
    return np.asarray(np.rint(low_waves(shades) * _UNIT), np.int16)


def low_waves(shades: NDArray[np.float32]) -> NDArray[np.float32]:
    """Luma `[n, 16, 16]` from afar: vectors `[n, 48]` of length 1; first the waves that no mirror changes."""
    waves = cosines(_WAVES, shades.shape[1])
    found = _flat(np.asarray(waves @ shades @ waves.T, np.float32))
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6), np.float32)


def _flat(grids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Waves `[n, 7, 7]` without the mean as vectors `[n, 48]`, first those that no mirror changes."""
    count = len(grids)
    even, odd = grids[:, :, ::2].reshape(count, -1)[:, 1:], grids[:, :, 1::2].reshape(count, -1)
    return np.concatenate([even, odd], axis=1)


def candidates(
    order: Indices, brightness: NDArray[np.float32], waves: Waves, most: int
) -> Iterator[NDArray[np.float64]]:
    """Pairs worth a closer look, as of `_alike`, `most` of the darker at most. order: by brightness."""
    batch = [np.empty((0, 4))]
    for members, guests in _cells(order, brightness, waves):
        levels = brightness[guests]
        for some in blocks(len(members), _ROWS):
            rows, found = members[some], batch[0]
            start = int(np.searchsorted(levels, brightness[rows[0]]))
            end = int(np.searchsorted(levels, brightness[rows[-1]] + BRIGHTNESS, side="right"))
            for left in range(start, end, _COLUMNS):
                columns = guests[left : min(left + _COLUMNS, end)]
                found = np.concatenate([found, _alike(brightness, waves, rows, columns)])
                found = found[rank(found[:, 0], -likeness(found)) < most]
                alike, count = np.unique(found[likeness(found) > _SURE, 0], return_counts=True)
                rows = rows[~np.isin(rows, alike[count == most])]
            batch.append(found)
            if sum(map(len, batch)) >= _BATCH:
                yield np.concatenate(batch)
                del batch[1:]
    yield np.concatenate(batch)


def _cells(
    order: Indices, brightness: NDArray[np.float32], waves: Waves
) -> Iterator[tuple[Indices, Indices]]:
    """Members of every cell, and the guests that they are compared with; both by brightness.

    Each picture is a member once. Cells divide a band of one brightness: each picture belongs to the most
    alike of some that are taken from the band as centres (an inverted file: Sivic & Zisserman 2003). Pictures
    as bright, or brighter by BRIGHTNESS at most, are guests of all cells whose border is within REACH.
    """
    if len(order) <= WHOLE:
        yield order, order
        return
    stop, levels = 0, brightness[order]
    while stop < len(order):
        start = stop
        stop = int(np.searchsorted(levels, levels[start] + BRIGHTNESS, side="right"))
        end = int(np.searchsorted(levels, levels[stop - 1] + BRIGHTNESS, side="right"))
        yield from _divided(order[start:end], stop - start, waves)


def _divided(band: Indices, members: int, waves: Waves) -> Iterator[tuple[Indices, Indices]]:
    """The cells of a band, of which the first so many are members: twice the root of their number."""
    count = int(2 * members**0.5)
    centres = waves[band[np.arange(count) * members // count]]
    even, odd = _products(centres, centres)
    near = even + np.abs(odd)
    # of centres that are all but equal the first one stays: frames of a burst are of one cell, not of all
    first = np.flatnonzero((near > _SURE * _UNIT**2).argmax(axis=1) == np.arange(count))
    count, centres = len(first), centres[first]
    apart = np.sqrt(np.maximum(2 * (_UNIT**2 - near[np.ix_(first, first)]), 0))
    homes, visits = np.empty(members, np.int64), []
    for some in blocks(len(band), _COLUMNS):
        even, odd = _products(waves[band[some]], centres)
        near = even + np.abs(odd)
        home = near.argmax(axis=1)
        inside = some < members
        homes[some[inside]] = home[inside]
        least = near.max(axis=1, keepdims=True) - REACH * _UNIT * apart[home]
        visitor, cell = np.divmod(np.flatnonzero(near >= least), count)
        visits.append(np.stack([cell, some[visitor]]).astype(np.int32))
    cells, visitors = np.concatenate(visits, axis=1)
    visitors = visitors[np.argsort(cells, kind="stable")]
    ends = np.cumsum([np.bincount(homes, minlength=count), np.bincount(cells, minlength=count)], axis=1)
    residents = np.argsort(homes, kind="stable")
    for own, guests in zip(np.split(residents, ends[0, :-1]), np.split(visitors, ends[1, :-1]), strict=True):
        if len(own):
            yield band[own], band[guests]


def _alike(
    brightness: NDArray[np.float32], waves: Waves, rows: Indices, columns: Indices
) -> NDArray[np.float64]:
    """Pairs above ALIKE `[k, 4]`: the darker, the other, and the two parts of the cosine."""
    even, odd = _products(waves[rows], waves[columns])
    found = np.flatnonzero(even + np.abs(odd) > ALIKE * _UNIT**2)
    row, column = np.divmod(found, len(columns))
    one, other = rows[row], columns[column]
    more = brightness[other] - brightness[one]
    near = ((more > 0) | ((more == 0) & (one < other))) & (more <= BRIGHTNESS)
    parts = (part.ravel()[found].astype(np.float64) / _UNIT**2 for part in (even, odd))
    return np.asarray(np.stack([one, other, *parts], axis=1)[near])


def _products(one: Waves, other: Waves) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scalar products of each with each, in two parts: upright their sum, mirrored their difference."""
    left, right = one.astype(np.float32), other.astype(np.float32)
    return left[:, :_EVEN] @ right[:, :_EVEN].T, left[:, _EVEN:] @ right[:, _EVEN:].T


def slant(one: Waves, other: Waves, mirrored: Indices) -> NDArray[np.float32]:
    """Sine of the angle between low waves `[k, 48]` at the crop of either that fits best: float32 `[k]`.

    To first order: what cutting off any side would change, times any factor, is free (the tangent distance of
    Simard et al. 1993). mirrored: `[k]`, of the other.
    """
    left, right = (np.asarray(each / np.float32(_UNIT), np.float32) for each in (one, other))
    right[mirrored.astype(bool), _EVEN:] *= -1
    return np.minimum(_off_crops(left, right), _off_crops(right, left))


def _off_crops(whole: NDArray[np.float32], part: NDArray[np.float32]) -> NDArray[np.float32]:
    """Length of `part` off the space of `whole` and its changes by a cut off each side: `[k]`."""
    changes = (whole @ _cut_changes()).reshape(len(whole), -1, whole.shape[1])
    space = np.concatenate([whole[:, None], changes], axis=1)
    gram = space @ space.transpose(0, 2, 1) + 1e-4 * np.eye(space.shape[1], dtype=np.float32)
    along = space @ part[:, :, None]
    inside = (along * np.linalg.solve(gram, along)).sum(axis=(1, 2))
    return np.asarray(np.sqrt(np.maximum((part**2).sum(axis=1) - inside, 0)), np.float32)


@lru_cache
def _cut_changes() -> NDArray[np.float32]:
    """What a cut of 8 % off the top, bottom, left or right changes in low waves: `[48, 4 * 48]`."""
    waves = cosines(_WAVES, THUMBNAIL)
    cuts = [waves @ cut @ waves.T for cut in crop_windows(THUMBNAIL, (0.0, 0.08))[1:3]]
    each = np.eye(_WAVES**2, dtype=np.float32).reshape(-1, _WAVES, _WAVES)
    grids = _flat(each).T.reshape(-1, _WAVES, _WAVES)
    changed = [cut @ grids - grids for cut in cuts] + [grids @ cut.T - grids for cut in cuts]
    return np.concatenate([_flat(each) for each in changed], axis=1)


def blocks(count: int, size: int) -> Iterator[Indices]:
    """The places of `count` things, so many at a time."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))


def likeness(alike: NDArray[np.float64]) -> NDArray[np.float64]:
    """The larger cosine, upright or mirrored, of pairs of `candidates`: `[k]`."""
    return np.asarray(alike[:, 2] + np.abs(alike[:, 3]))


def rank(rows: NDArray[Any], keys: NDArray[Any]) -> Indices:
    """The place of each among those of its row, by ascending keys: int64 `[k]`."""
    order = np.lexsort((keys, rows))
    ranks = np.empty(len(rows), np.int64)
    ranks[order] = np.arange(len(rows)) - np.searchsorted(rows[order], rows[order])
    return ranks


@lru_cache(maxsize=4)
def cosines(count: int, length: int) -> NDArray[np.float32]:
    """The first `count` rows of the orthonormal cosine transform (DCT-II) of `length` values."""
    places = (np.arange(length) + 0.5) * np.pi / length
    waves = np.cos(np.arange(count)[:, None] * places) * np.sqrt(2 / length)
    waves[0] /= np.sqrt(2)
    return np.asarray(waves, np.float32)
