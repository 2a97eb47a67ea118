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

Tints = NDArray[np.int16]
"""Colour from afar `[n, 18]`, in quarters of a level; first the two means."""

THUMBNAIL: Final = 16
"""Side of the thumbnail that near-duplicates are told by."""
ALIKE: Final = 0.85
"""Cosine of the low waves of two thumbnails from which a pair is looked at closely. Measured on 522 pictures,
drawn and photographed, with 5 % of both sides cropped: the lowest 0.915 (docs/log.md)."""
BRIGHTNESS: Final = 14.0
"""Levels of mean luma by which a crop may differ; with 5 % cropped the farthest of 522 was 13.2."""
WHOLE: Final = 20_000
"""Pictures up to which all are compared with all. Of more, each is compared with those in cells near it."""
REACH: Final = 0.075
"""How far beyond its border with another a cell is searched, where low waves have length 1. Of 1,965 planted
twins that comparing all with all finds among 100,000, cells find 1,961 among a million (docs/log.md)."""
ZOOM: Final = 0.05
"""Share cut off all sides that changes no cell: cells are searched for what that makes of a picture, too."""
CUT: Final = 0.08
"""Share of a side that twins may lack."""
TINT, TINTED = 11.0, 0.4
"""Levels, and share of their contrast, by which colours from afar of twins may differ, in a large set.
The shift that is allowed each channel of aligned twins makes 10.7 at most, a crop the rest."""
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
_FEW: Final = 128
"""Rows of a cell that are compared at once: few, so that they are about as bright."""
_FORK, _MEMBERS = 64, 1000
"""Cells that one is divided into at most, and members from about twice of which it is divided."""
_PLACE, _COLOUR, _VIVID = 400, 12, 100
"""For cells: the length of low waves, what a level of colour is beside it, and levels of colour at most.
Products are whole numbers that float32 holds."""
_TINT_UNIT, _ZOOM_UNIT = 4, 256
"""What whole numbers of colours and of zooms count."""
_EVEN_TINTS: Final = 12
TINTS: Final = 18
"""Numbers of a picture's colour from afar, of which the first are the same in a mirror."""


def quantised(shades: NDArray[np.float32]) -> Waves:
    """Luma `[n, 16, 16]` from afar, as `candidates` compares it."""
    return np.asarray(np.rint(low_waves(shades) * _UNIT), np.int16)


def low_waves(shades: NDArray[np.float32]) -> NDArray[np.float32]:
    """Luma `[n, 16, 16]` from afar: vectors `[n, 48]` of length 1; first the waves that no mirror changes."""
    waves = cosines(_WAVES, shades.shape[1])
    found = _flat(np.asarray(waves @ shades @ waves.T, np.float32))
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6), np.float32)


def tints(thumbnails: NDArray[Any], shades: NDArray[np.float32]) -> Tints:
    """Colour from afar: red and blue less luma, their lowest 9 waves, first those that no mirror changes."""
    colours = thumbnails[..., ::2].transpose(0, 3, 1, 2) - shades[:, None]
    waves = cosines(3, THUMBNAIL)
    grids = np.asarray(waves @ colours @ waves.T, np.float32) * (_TINT_UNIT / THUMBNAIL)
    parts = [grids[..., ::2].transpose(0, 2, 3, 1), grids[..., 1]]
    return np.asarray(np.rint(np.concatenate([p.reshape(len(grids), -1) for p in parts], axis=1)), np.int16)


def are_tinted_alike(one: Tints, other: Tints) -> NDArray[np.bool_]:
    """Whether pairs `[k, 18]` are of like colours from afar, upright or mirrored: `[k]`."""
    one, other = one.astype(np.int32), other.astype(np.int32)
    upright, contrasts = (
        ((one - other) ** 2).sum(axis=1),
        [(each[:, 2:] ** 2).sum(axis=1) for each in (one, other)],
    )
    # a mirror turns the odd waves: (a + b)**2 is (a - b)**2 + 4ab
    mirrored = upright + 4 * (one[:, _EVEN_TINTS:] * other[:, _EVEN_TINTS:]).sum(axis=1)
    apart, contrast = np.sqrt(np.minimum(upright, mirrored)), np.sqrt(np.minimum(*contrasts))
    return np.asarray(apart <= TINT * _TINT_UNIT + TINTED * contrast)


def _flat(grids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Waves `[n, 7, 7]` without the mean as vectors `[n, 48]`, first those that no mirror changes."""
    count = len(grids)
    even, odd = grids[:, :, ::2].reshape(count, -1)[:, 1:], grids[:, :, 1::2].reshape(count, -1)
    return np.concatenate([even, odd], axis=1)


def candidates(
    order: Indices, brightness: NDArray[np.float32], waves: Waves, tints: Tints, most: int
) -> Iterator[NDArray[np.float64]]:
    """Pairs worth a closer look, as of `_alike`, `most` of the darker at most. order: by brightness."""
    batch = [np.empty((0, 4))]
    whole = len(order) <= WHOLE
    for members, guests in [(order, order)] if whole else _cells(order, order, waves, tints):
        levels = brightness[guests]
        for some in blocks(len(members), _ROWS if whole else _FEW):
            rows, found = members[some], batch[0]
            start = int(np.searchsorted(levels, brightness[rows[0]]))
            end = int(np.searchsorted(levels, brightness[rows[-1]] + BRIGHTNESS, side="right"))
            for left in range(start, end, _COLUMNS):
                columns = guests[left : min(left + _COLUMNS, end)]
                alike = _alike(brightness, waves, rows, columns)
                if not whole:
                    alike = alike[are_tinted_alike(*tints[alike[:, :2].T.astype(np.int64)])]
                found = np.concatenate([found, alike])
                if len(found) >= most:
                    found = found[rank(found[:, 0], -likeness(found)) < most]
                    full, count = np.unique(found[likeness(found) > _SURE, 0], return_counts=True)
                    rows = rows[~np.isin(rows, full[count == most])]
            batch.append(found)
            if sum(map(len, batch)) >= _BATCH:
                yield np.concatenate(batch)
                del batch[1:]
    yield np.concatenate(batch)


def _cells(
    members: Indices, guests: Indices, waves: Waves, tints: Tints
) -> Iterator[tuple[Indices, Indices]]:
    """Members of every cell, and the guests that they are compared with; both in the order that they have.

    Each picture is a member once. It belongs to the nearest of some members that are taken as centres, and in
    that cell again, until cells are small (a tree of inverted files: Nister & Stewenius 2006). Guests are of
    all cells whose border is within REACH of them, as they are or seen from nearer or farther.
    """
    chosen = members[_spread(len(members), min(_FORK, len(members) // _MEMBERS))]
    centres = _distinct(_placed(waves[chosen], tints[chosen]))
    count = len(centres)
    if count < 2:
        yield members, guests
        return
    lengths = (centres**2).sum(axis=1) / 2
    apart = np.sqrt(np.maximum(2 * (lengths[:, None] - _nearness(centres, centres, lengths)), 0))
    homes, visits = [], []
    for some in blocks(len(members), _BATCH):
        places = _placed(waves[members[some]], tints[members[some]])
        homes.append(_nearness(places, centres, lengths).argmax(axis=1))
    for some in blocks(len(guests), _BATCH):
        inside = np.zeros((len(some), count), np.bool_)
        for look in _zoomed(_placed(waves[guests[some]], tints[guests[some]])):
            near = _nearness(look, centres, lengths)
            inside |= near >= near.max(axis=1, keepdims=True) - REACH * _PLACE * apart[near.argmax(axis=1)]
        guest, cell = np.nonzero(inside)
        visits.append(np.stack([cell, some[guest]]).astype(np.int32))
    cells, visitors = np.concatenate(visits, axis=1)
    residents = _by_cell(np.concatenate(homes), np.arange(len(members)), count)
    for own, visiting in zip(residents, _by_cell(cells, visitors, count), strict=True):
        yield from _cells(members[own], guests[visiting], waves, tints)


def _spread(length: int, count: int) -> Indices:
    """So many places of a series, as far from one another."""
    return np.arange(count) * length // max(count, 1)


def _distinct(places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Places without those that all but equal one before: frames of a burst are of one cell, not of all."""
    lengths = (places**2).sum(axis=1) / 2
    apart = lengths[:, None] - _nearness(places, places, lengths)
    return np.asarray(places[~np.tril(apart < (1 - _SURE) * _PLACE**2, -1).any(axis=1)], np.float32)


def _placed(waves: Waves, tints: Tints) -> NDArray[np.float32]:
    """Where cells have pictures: `[n, 66]`, low waves and colours in whole numbers, even ones first."""
    shades, colours = waves * np.float32(_PLACE / _UNIT), tints.astype(np.float32)
    length = np.sqrt((colours**2).sum(axis=1, keepdims=True))
    colours *= _COLOUR / np.maximum(length / _VIVID, _TINT_UNIT)
    parts = [shades[:, :_EVEN], colours[:, :_EVEN_TINTS], shades[:, _EVEN:], colours[:, _EVEN_TINTS:]]
    return np.asarray(np.rint(np.concatenate(parts, axis=1)), np.float32)


def _nearness(
    one: NDArray[np.float32], other: NDArray[np.float32], lengths: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The larger scalar product of each with each, upright or mirrored, less half the other's square."""
    even = _EVEN + _EVEN_TINTS
    upright, odd = one[:, :even] @ other[:, :even].T, one[:, even:] @ other[:, even:].T
    return np.asarray(upright + np.abs(odd) - lengths, np.float32)


def _by_cell(cells: NDArray[Any], places: NDArray[Any], count: int) -> list[NDArray[Any]]:
    """The places in each cell, in the order that they have."""
    ends = np.bincount(cells, minlength=count).cumsum()
    return np.split(places[np.argsort(cells, kind="stable")], ends[:-1])


def _zoomed(places: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Places as they are, as a cut of ZOOM off all sides would move them, and as far the other way."""
    change = places @ _zoom() / _ZOOM_UNIT
    yield from (places, np.rint(places + change), np.rint(places - change))


@lru_cache
def _zoom() -> NDArray[np.float32]:
    """How a cut off all sides moves places `[66, 66]`, in whole numbers of _ZOOM_UNIT."""
    waves = cosines(_WAVES, THUMBNAIL)
    cut = waves @ crop_windows(THUMBNAIL, (0.0, ZOOM))[3] @ waves.T
    each = np.eye(_WAVES**2, dtype=np.float32).reshape(-1, _WAVES, _WAVES)
    grids = _flat(each).T.reshape(-1, _WAVES, _WAVES)
    moves = np.zeros((WIDTH + TINTS, WIDTH + TINTS), np.float32)
    shades = np.r_[:_EVEN, _EVEN + _EVEN_TINTS : WIDTH + _EVEN_TINTS]
    moves[np.ix_(shades, shades)] = np.rint(_ZOOM_UNIT * _flat(cut @ grids @ cut.T - grids))
    return moves


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
    cuts = [waves @ cut @ waves.T for cut in crop_windows(THUMBNAIL, (0.0, CUT))[1:3]]
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
