"""Twins: the same file again, and the same picture again, whether re-encoded, resized, slightly cropped or mirrored.

Before it: looks, with their hashes and thumbnails. After it: `rules` says what becomes of twins, and `pack` never lets
a split separate them.

Near twins are searched in two steps. Pictures of about the same brightness are compared by the low waves of their
thumbnails, which is a product of two matrices and misses next to nothing; the few pairs that agree are then laid on
one another, with up to 8 % cut off each side, and must differ by little. The second step is what tells a twin from
another dog of the same breed in the same pose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cache.survey import THUMBNAIL, Look, cosines, luma

Thumbnails = NDArray[np.float32]
Indices = NDArray[np.int64]

ALIKE: Final = 0.85
"""Cosine of the low waves of two thumbnails from which a pair is looked at closely. Measured on 522 pictures, drawn and
photographed, with 5 % of both sides cropped: the lowest 0.915 (docs/log.md)."""
BRIGHTNESS: Final = 14.0
"""Levels of mean luma by which a crop may differ; with 5 % cropped the farthest of 522 was 13.2."""
APART: Final = 0.25
"""Root mean square difference of two thumbnails laid on one another, as a share of the contrast, up to which they are
twins. Of 522 crops 99 % measured at most 0.22; the nearest two of the demo's dogs that are none 0.41."""
COLOUR_SHIFT: Final = 6.0
"""Levels by which any channel's mean of twins may differ once they lie on one another."""
FLAT: Final = 4.0
"""Standard deviation of luma, in levels, below which a thumbnail shows nothing to compare."""
DETAILED: Final = 48
"""Pixels of the shorter side from which near twins are sought. Smaller pictures of one thing are all alike: 1,421 of the
1,797 digits of scikit-learn, 8 pixels large, would have a twin."""
CLOSEST: Final = 8
"""Pairs kept for one picture at most: in a long burst of equal pictures every one still hangs on its neighbours."""
_WAVES: Final = 7
_ROWS, _COLUMNS, _PAIRS = 512, 8192, 256
_CUTS: Final = (0.0, 0.02, 0.04, 0.06, 0.08)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two looks, by their index, `one` before `other`, that show the same picture. apart: 0 where nothing differs."""

    one: int
    other: int
    apart: float
    mirrored: bool


@dataclass(frozen=True)
class Twins:
    """Who is whose twin. originals: int64 `[n]`, the first look with the same bytes, oneself where there is none before.

    pairs: near twins among the originals.
    """

    originals: Indices
    pairs: tuple[Pair, ...]

    def groups(self) -> Indices:
        """int64 `[n]`: the smallest index among all that hang together, directly or through others."""
        parents = self.originals.copy()
        for pair in self.pairs:
            one, other = _root(parents, pair.one), _root(parents, pair.other)
            parents[max(one, other)] = min(one, other)
        return np.array([_root(parents, index) for index in range(len(parents))], np.int64)


def find_twins(looks: Sequence[Look]) -> Twins:
    """Exact and near twins among looks; what does not decode has none."""
    originals = find_originals([look.sha256 if not look.problem else "" for look in looks])
    chosen = np.array(
        [
            index
            for index, look in enumerate(looks)
            if originals[index] == index and look.thumbnail and min(look.width, look.height) >= DETAILED
        ],
        np.int64,
    )
    if not len(chosen):
        return Twins(originals, ())
    stored = np.frombuffer(b"".join(looks[index].thumbnail for index in chosen), np.uint8)
    pairs = find_pairs(stored.reshape(-1, THUMBNAIL, THUMBNAIL, 3))
    named = (Pair(int(chosen[p.one]), int(chosen[p.other]), p.apart, p.mirrored) for p in pairs)
    return Twins(originals, tuple(named))


def find_originals(hashes: Sequence[str]) -> Indices:
    """int64 `[n]`: the first index with the same hash; an empty one is like no other."""
    first: dict[str, int] = {}
    return np.array(
        [first.setdefault(text, index) if text else index for index, text in enumerate(hashes)], np.int64
    )


def find_pairs(thumbnails: NDArray[np.uint8]) -> list[Pair]:
    """Near twins among thumbnails `[n, 16, 16, 3]`, each pair once, in the order of their indices."""
    shades = luma(thumbnails)
    busy = np.flatnonzero(shades.std(axis=(1, 2)) >= FLAT)
    shades, order = shades[busy], np.argsort(shades[busy].mean(axis=(1, 2)), kind="stable")
    shades, busy = shades[order], busy[order]
    found: dict[tuple[int, int], Pair] = {}
    for mirrored in (False, True):
        for one, other in _candidates(shades, mirrored):
            for pair in _verify(thumbnails, busy[one], busy[other], mirrored):
                known = found.get((pair.one, pair.other))
                if known is None or pair.apart < known.apart:
                    found[pair.one, pair.other] = pair
    return [found[key] for key in sorted(found)]


def measure_apart(one: Thumbnails, other: Thumbnails) -> NDArray[np.float32]:
    """How far apart the pictures of each pair are, at the crop of either that suits best; see APART.

    one, other: RGB `[n, 16, 16, 3]` or luma `[n, 16, 16, 1]`. Returns float32 `[n]`; infinite where a colour is another.
    """
    one, other = _soften(one), _soften(other)
    contrast = np.minimum(_contrast(one), _contrast(other))
    differences = np.stack([_lay_upon(one, other), _lay_upon(other, one)])
    shift = np.abs(differences.mean(axis=(2, 3))).max(axis=2)
    error = np.sqrt((differences**2).mean(axis=(2, 3, 4)))
    apart = np.where(shift <= COLOUR_SHIFT, error / np.maximum(contrast, 1e-6), np.inf)
    return np.asarray(apart.min(axis=0), np.float32)


def _contrast(pictures: Thumbnails) -> NDArray[np.float32]:
    shades = luma(pictures) if pictures.shape[-1] == 3 else pictures[..., 0]
    return np.asarray(shades.std(axis=(1, 2)), np.float32)


def _candidates(shades: NDArray[np.float32], mirrored: bool) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of indices worth a closer look among luma `[n, 16, 16]` in ascending order of brightness."""
    brightness = shades.mean(axis=(1, 2))
    waves = _low_waves(shades)
    columns = _low_waves(shades[:, :, ::-1]) if mirrored else waves
    for start in range(0, len(shades), _ROWS):
        stop = min(start + _ROWS, len(shades))
        end = int(np.searchsorted(brightness, brightness[stop - 1] + BRIGHTNESS, side="right"))
        for left in range(start, end, _COLUMNS):
            right = min(left + _COLUMNS, end)
            likeness = waves[start:stop] @ columns[left:right].T
            likeness[np.arange(left, right) <= np.arange(start, stop)[:, None]] = 0
            one, other = _closest(likeness)
            yield one + start, other + left


def _closest(likeness: NDArray[np.float32]) -> tuple[Indices, Indices]:
    """Rows and columns of the entries above ALIKE, of each row the greatest only: one burst must not cost a square."""
    rows, columns = np.nonzero(likeness > ALIKE)
    order = np.lexsort((-likeness[rows, columns], rows))
    rows, columns = rows[order], columns[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    return rows[rank < CLOSEST], columns[rank < CLOSEST]


def _low_waves(shades: NDArray[np.float32]) -> NDArray[np.float32]:
    """What pictures `[n, 16, 16]` are like from afar: vectors of length 1, brightness left out."""
    waves = cosines(_WAVES, shades.shape[1])
    found = (waves @ shades @ waves.T).reshape(len(shades), _WAVES**2)[:, 1:]
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6), np.float32)


def _verify(thumbnails: NDArray[np.uint8], one: Indices, other: Indices, mirrored: bool) -> Iterator[Pair]:
    for start in range(0, len(one), _PAIRS):
        left, right = one[start : start + _PAIRS], other[start : start + _PAIRS]
        across = thumbnails[right][:, :, ::-1] if mirrored else thumbnails[right]
        # luma alone costs a third, and spares nearly every stranger the colours
        likely = measure_apart(luma(thumbnails[left])[..., None], luma(across)[..., None]) <= 1.2 * APART
        left, right, across = left[likely], right[likely], across[likely]
        apart = measure_apart(thumbnails[left].astype(np.float32), across.astype(np.float32))
        for place in np.flatnonzero(apart <= APART):
            first, second = sorted((int(left[place]), int(right[place])))
            yield Pair(first, second, round(float(apart[place]), 3), mirrored)


def _soften(pictures: Thumbnails) -> Thumbnails:
    """Blur by (1, 2, 1) both ways: what is left does not depend on where a crop's pixels began."""
    side = pictures.shape[1]
    near = np.abs(np.arange(side)[:, None] - np.arange(side))
    kernel = np.where(near == 0, 2.0, np.where(near == 1, 1.0, 0.0)).astype(np.float32)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return _across(kernel, _down(kernel, pictures))


def _lay_upon(one: Thumbnails, other: Thumbnails) -> Thumbnails:
    """The difference `[n, 16, 16, 3]` from `other` of the crop of `one` that is nearest to it: rows, columns, again."""
    windows = _windows(one.shape[1])
    rows = columns = np.zeros(len(one), np.int64)  # of the windows: nothing cut off
    for _ in range(2):
        rows = _best(windows, _across(windows[columns], one), other)
        turned, target = _down(windows[rows], one).transpose(0, 2, 1, 3), other.transpose(0, 2, 1, 3)
        columns = _best(windows, turned, target)
    return np.asarray(_across(windows[columns], _down(windows[rows], one)) - other)


def _best(windows: NDArray[np.float32], pictures: Thumbnails, target: Thumbnails) -> Indices:
    """The window, for each picture, through whose rows it is nearest to its target: int64 `[n]`."""
    errors = [((_down(window, pictures) - target) ** 2).mean(axis=(1, 2, 3)) for window in windows]
    return np.asarray(np.argmin(errors, axis=0), np.int64)


def _down(matrix: NDArray[np.float32], pictures: Thumbnails) -> Thumbnails:
    """Rows mixed by a matrix `[16, 16]`, or one for each picture."""
    count, height, width, channels = pictures.shape
    mixed = np.matmul(matrix, pictures.reshape(count, height, width * channels))
    return np.asarray(mixed.reshape(pictures.shape), np.float32)


def _across(matrix: NDArray[np.float32], pictures: Thumbnails) -> Thumbnails:
    """Columns mixed by a matrix `[16, 16]`, or one for each picture."""
    return _down(matrix, pictures.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


def _windows(side: int) -> NDArray[np.float32]:
    """Matrices `[25, side, side]` that cut something off either end and stretch the rest, nothing cut off first."""
    found = []
    for before in _CUTS:
        for after in _CUTS:
            places = before * side + (np.arange(side) + 0.5) * (1 - before - after) - 0.5
            distance = np.abs(np.clip(places, 0, side - 1)[:, None] - np.arange(side))
            found.append(np.maximum(0, 1 - distance))
    return np.array(found, np.float32)


def _root(parents: Indices, index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = int(parents[index])
    return index
