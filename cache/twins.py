"""Twins: the same file again, or the same picture re-encoded, resized, cropped or mirrored.

Before it: `ImageInfo`s, with their digests and thumbnails. After it: `survey.findings` shows those that are
the same picture beyond doubt, and `pack` never lets a split separate any. `nearby` proposes pairs whose
thumbnails are alike from afar. They are aligned, and must differ by little. Close-ups of those that remain
must be alike in detail.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from greyhound.cache.decode import luma
from greyhound.cache.files import DiskList, Series
from greyhound.cache.nearby import (
    ALIKE,
    THUMBNAIL,
    TINTS,
    WHOLE,
    WIDTH,
    Indices,
    Waves,
    blocks,
    candidates,
    likeness,
    quantised,
    rank,
    slant,
    tints,
)
from greyhound.cache.overlay import aligned_rmse, normalised_cross_correlation, unlike_share
from greyhound.cache.scan import ImageInfo
from greyhound.cache.thumbnail import Reader

APART: Final = 0.25
"""Aligned RMSE of two thumbnails up to which they are twins. Of 522 crops 99 % measured at most 0.22; the
nearest two of the demo's dogs that are none 0.41."""
LIKENESS: Final = 0.82
"""Correlation of two close-ups from which such a pair are twins. The least of the 25 pairs in dogs25 measures
0.862, the most of 3,000 pairs of portraits drawn to one composition 0.776 (docs/log.md)."""
SAME: Final = 0.06
"""Share of the blocks of two close-ups that may differ where they are called the same picture. Of 31 true
pairs the most measured 0.034, of 21 false ones (clothes on one bed cover) the least 0.082 (docs/log.md)."""
FLAT: Final = 4.0
"""Standard deviation of luma, in levels, below which a thumbnail shows nothing to compare."""
DETAILED: Final = 48
"""Pixels of the shorter side from which near twins are sought. Smaller pictures of one thing look alike."""
CLOSEST: Final = 8
"""Pairs of one picture that are verified first, the most alike: enough to hold a burst together."""
LOOKED_AT: Final = 256
"""Pairs of one picture that are aligned, at most, the most alike from afar. Of 460 portraits drawn to one
composition 60 are twins of another; for each there were at most 150 that looked more alike."""
FINALISTS: Final = 16
"""Of these pairs so many are verified, at most, the nearest."""
SLANT: Final = 0.38
"""Sine of the angle between the low waves of two pictures above which no crop lays one on the other. In a
large set alone: of 1,977 pairs it loses one (docs/log.md)."""
_PAIRS: Final = 256


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images, by index, `one` before `other`, that show the same picture. apart: 0 if equal."""

    one: int
    other: int
    apart: float
    mirrored: bool


def show_one_picture(pair: Pair, detail: Reader) -> bool:
    """Whether two twins are the same picture, and not two that are much alike. detail: close-ups; None: yes.

    A split holds all twins together, because a missed one leaks. A person is shown those that this confirms.
    """
    one, other = detail(pair.one), detail(pair.other)
    if one is None or other is None:
        return True
    return unlike_share(one, other[:, ::-1] if pair.mirrored else other) <= SAME


@dataclass(frozen=True)
class Twins:
    """originals: int64 `[n]`, the first image with the same bytes, or oneself. pairs: near twins of them."""

    originals: Indices
    pairs: tuple[Pair, ...]

    def groups(self) -> Indices:
        """int64 `[n]`: the smallest index among all that hang together, directly or through others."""
        parents = self.originals.copy()
        for pair in self.pairs:
            join(parents, pair.one, pair.other)
        return find_roots(parents)


@dataclass(frozen=True)
class _Stored:
    """The thumbnails of some images, read from where they are stored as from an array `[n, 16, 16, 3]`."""

    infos: Series[ImageInfo]
    chosen: Indices

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, places: Indices, /) -> NDArray[np.uint8]:
        stored = b"".join(self.infos[index].thumbnail for index in self.chosen[places].tolist())
        return np.frombuffer(stored, np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL, 3)


Pictures: TypeAlias = NDArray[np.uint8] | _Stored


def no_closeup(index: int) -> None:
    """For where there are no files: thumbnails alone decide."""


def find_twins(
    infos: Series[ImageInfo], closeup: Reader = no_closeup, crowded: Callable[[int], None] | None = None
) -> Twins:
    """Exact and near twins among images; what does not decode has none. closeup: of an image, by its index.

    crowded: told how many images are like LOOKED_AT others or more from afar: twins of theirs may be missed.
    """
    originals = find_originals(info.sha256 if not info.problem else "" for info in infos)
    detailed = (bool(info.thumbnail) and min(info.width, info.height) >= DETAILED for info in infos)
    chosen = np.flatnonzero(np.fromiter(detailed, bool) & (originals == np.arange(len(originals))))
    pairs = find_pairs(_Stored(infos, chosen), lambda place: closeup(int(chosen[place])), crowded)
    named = (Pair(int(chosen[p.one]), int(chosen[p.other]), p.apart, p.mirrored) for p in pairs)
    return Twins(originals, tuple(named))


def find_originals(hashes: Iterable[str]) -> Indices:
    """int64 `[n]`: the first index with the same 128 bits of hash; an empty hash has no twin."""
    keys = np.fromiter((text.encode() for text in hashes), "S32")
    _, first, place = np.unique(keys, return_index=True, return_inverse=True)
    return np.asarray(np.where(keys == b"", np.arange(len(keys)), first[place]), np.int64)


def find_pairs(
    thumbnails: Pictures, closeup: Reader = no_closeup, crowded: Callable[[int], None] | None = None
) -> list[Pair]:
    """Near twins among thumbnails, each pair once, by index. closeup, crowded: as in `find_twins`."""
    brightness, contrast = np.empty((2, len(thumbnails)), np.float32)
    waves, colours = (np.empty((len(thumbnails), width), np.int16) for width in (WIDTH, TINTS))
    for places in blocks(len(thumbnails), _PAIRS):
        pictures = thumbnails[places]
        shades = luma(pictures)
        brightness[places], contrast[places] = shades.mean(axis=(1, 2)), shades.std(axis=(1, 2))
        waves[places], colours[places] = quantised(shades), tints(pictures, shades)
    busy = np.flatnonzero(contrast >= FLAT)
    order = busy[np.argsort(brightness[busy], kind="stable")]
    found = _Found(thumbnails, waves if len(order) > WHOLE else None, closeup)
    many = 0
    batches = candidates(order, brightness, waves, colours, LOOKED_AT)
    # products as small as these cost BLAS's threads several times as much in waiting for each other
    with (
        threadpool_limits(1, "blas"),
        DiskList(found.verify_closest(_oriented(alike)) for alike in batches) as left,
    ):
        for likely in left:
            many += len(np.unique(likely[likely[:, 3] == LOOKED_AT - 1, 0]))
            found.verify(found.nearest(likely))
    if many and crowded:
        crowded(many)
    return [found.pairs[key] for key in sorted(found.pairs)]


class _Found:
    """The pairs that are found so far, and what hangs together through them.

    A likely pair is int64 `[4]`: both indices, whether the other is mirrored, its rank for the first.
    """

    def __init__(self, thumbnails: Pictures, waves: Waves | None, closeup: Reader) -> None:
        self.pairs: dict[tuple[int, int], Pair] = {}
        self._thumbnails, self._waves, self._closeup = thumbnails, waves, closeup
        self._parents = np.arange(len(thumbnails))

    def verify_closest(self, likely: Indices) -> Indices:
        """Verify the CLOSEST of each picture, and return the others."""
        closest = likely[:, 3] < CLOSEST
        self.verify(likely[closest])
        return likely[~closest]

    def verify(self, likely: Indices) -> None:
        """Add those of the likely pairs `[k, 4]` that are twins."""
        likely = likely[self._fit(likely)]
        for places in blocks(len(likely), _PAIRS):
            some = likely[places]
            # luma alone costs a third, and spares nearly every stranger the colours
            some = some[self._apart(some) <= 1.2 * APART]
            apart = aligned_rmse(*(each.astype(np.float32) for each in self._laid_out(some)))
            near = np.flatnonzero(apart <= APART)
            near = near[self._are_alike(some[near])]
            some, apart = some[near], apart[near]
            for (one, other, mirrored, _), exact in zip(some.tolist(), apart.tolist(), strict=True):
                key, distance = (min(one, other), max(one, other)), round(exact, 3)
                if key not in self.pairs or distance < self.pairs[key].apart:
                    self.pairs[key] = Pair(*key, distance, bool(mirrored))
                join(self._parents, one, other)

    def nearest(self, likely: Indices) -> Indices:
        """The FINALISTS of each picture that are nearest when aligned, one a group of known twins."""
        roots = np.sort(find_roots(self._parents, likely[:, :2]), axis=1)
        apart = np.flatnonzero(roots[:, 0] != roots[:, 1])
        apart = apart[self._fit(likely[apart])]
        likely, roots = likely[apart], roots[apart]
        parts = (self._apart(likely[each]) for each in blocks(len(likely), _PAIRS))
        distance = np.concatenate([np.empty(0, np.float32), *parts])
        order = np.argsort(distance, kind="stable")
        order = order[np.sort(np.unique(roots[order], axis=0, return_index=True)[1])]
        likely = likely[order[distance[order] <= 1.2 * APART]]
        return likely[rank(likely[:, 0], np.arange(len(likely))) < FINALISTS]

    def _fit(self, likely: Indices) -> NDArray[np.bool_]:
        """Whether a crop could lay one on the other, by the low waves. In a small set all are aligned."""
        found = np.ones(len(likely), np.bool_)
        if self._waves is not None:
            for places in blocks(len(likely), 16 * _PAIRS):
                one, other, mirrored, _ = likely[places].T
                found[places] = slant(self._waves[one], self._waves[other], mirrored) <= SLANT
        return found

    def _apart(self, likely: Indices) -> NDArray[np.float32]:
        """How far apart pairs are in luma `[k]`."""
        return aligned_rmse(*(luma(each)[..., None] for each in self._laid_out(likely)))

    def _laid_out(self, likely: Indices) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Both thumbnails of pairs, `[k, 16, 16, 3]` each, the mirrored ones turned back."""
        return self._thumbnails[likely[:, 0]], _turned(self._thumbnails[likely[:, 1]], likely[:, 2])

    def _are_alike(self, likely: Indices) -> NDArray[np.bool_]:
        """Whether the close-ups of pairs are alike; those without any are taken for it."""
        pictures = [(self._closeup(one), self._closeup(other)) for one, other in likely[:, :2].tolist()]
        known = np.array([one is not None and other is not None for one, other in pictures], bool)
        alike = ~known
        if known.any():
            pairs = zip(*itertools.compress(pictures, known), strict=True)
            left, right = (np.stack([each for each in side if each is not None]) for side in pairs)
            alike[known] = normalised_cross_correlation(left, _turned(right, likely[known, 2])) >= LIKENESS
        return alike


def _turned(pictures: NDArray[np.uint8], mirrored: Indices) -> NDArray[np.uint8]:
    """Pictures `[k, H, W, ...]`, of which some are mirrored `[k]`, all of them upright."""
    chosen = mirrored.astype(bool).reshape(-1, *[1] * (pictures.ndim - 1))
    return np.where(chosen, pictures[:, :, ::-1], pictures)


def _oriented(alike: NDArray[np.float64]) -> Indices:
    """Likely pairs of those of `candidates`, the upright ones and the mirrored ones."""
    ranks = rank(alike[:, 0], -likeness(alike))
    rows = [
        np.column_stack([alike[:, :2], np.full(len(alike), mirrored), ranks])[cosine > ALIKE]
        for mirrored, cosine in ((0, alike[:, 2] + alike[:, 3]), (1, alike[:, 2] - alike[:, 3]))
    ]
    return np.concatenate(rows).astype(np.int64)


def find_roots(parents: Indices, at: Indices | None = None) -> Indices:
    """The lowest index that hangs together with each of `at`, of any shape; without `at`, of all."""
    found = parents if at is None else at
    while not np.array_equal(found, higher := parents[found]):
        found = higher
    return found


def join(parents: Indices, *indices: int) -> None:
    """Give both trees one root, the lower one."""
    roots = []
    for index in indices:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = int(parents[index])
        roots.append(index)
    parents[max(roots)] = min(roots)
