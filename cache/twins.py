"""Twins: the same file again, and the same picture again, whether re-encoded, resized, slightly cropped or mirrored.

Before it: looks, with their hashes and thumbnails. After it: `rules` says what becomes of twins, and `pack` never lets
a split separate them.

Near twins are searched in two steps. Pictures of about the same brightness are compared by the low waves of their
thumbnails, which is a product of two matrices and misses next to nothing; the few pairs that agree are then laid on
one another, with up to 8 % cut off each side, and must differ by little. The second step is what tells a twin from
another dog of the same breed in the same pose.

The first step compares all with all, in 57 seconds of a processor for 300,000 pictures: what a crop moves is so much, in about
twenty dimensions that matter, that no index would spare a comparison without missing a twin (docs/log.md).
Thumbnails are read where they are needed and not held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from cache.spool import Series
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
"""Pairs that are looked at closely of one picture, at most: in a long burst of equal pictures every one still hangs on its
neighbours."""
_WAVES: Final = 7
_EVEN: Final = _WAVES * (_WAVES // 2 + 1) - 1
"""So many of the low waves, the first, are the same in a mirror."""
_ROWS, _COLUMNS, _PAIRS = 512, 1024, 256
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


class Pictures(Protocol):
    """Thumbnails: an array, or what reads them from elsewhere."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, places: Indices, /) -> NDArray[np.uint8]:
        """Those at `places` `[k]`: RGB `[k, 16, 16, 3]`."""


@dataclass(frozen=True)
class _Shown:
    """The thumbnails of some looks, by their index."""

    looks: Series[Look]
    chosen: Indices

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, places: Indices, /) -> NDArray[np.uint8]:
        stored = b"".join(self.looks[index].thumbnail for index in self.chosen[places].tolist())
        return np.frombuffer(stored, np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL, 3)


def find_twins(looks: Series[Look]) -> Twins:
    """Exact and near twins among looks; what does not decode has none."""
    originals = find_originals(look.sha256 if not look.problem else "" for look in looks)
    chosen = np.fromiter(
        (
            index
            for index, look in enumerate(looks)
            if originals[index] == index and look.thumbnail and min(look.width, look.height) >= DETAILED
        ),
        np.int64,
    )
    pairs = find_pairs(_Shown(looks, chosen))
    named = (Pair(int(chosen[p.one]), int(chosen[p.other]), p.apart, p.mirrored) for p in pairs)
    return Twins(originals, tuple(named))


def find_originals(hashes: Iterable[str]) -> Indices:
    """int64 `[n]`: the first index with the same hash, told by its first 128 bits; an empty one is like no other."""
    keys = np.fromiter((text.encode() for text in hashes), "S32")
    _, first, place = np.unique(keys, return_index=True, return_inverse=True)
    return np.asarray(np.where(keys == b"", np.arange(len(keys)), first[place]), np.int64)


def find_pairs(thumbnails: Pictures) -> list[Pair]:
    """Near twins among thumbnails, each pair once, in the order of their indices."""
    brightness, contrast = _light(thumbnails)
    busy = np.flatnonzero(contrast >= FLAT)
    order = busy[np.argsort(brightness[busy], kind="stable")]
    found: dict[tuple[int, int], Pair] = {}
    for one, other, mirrored in _candidates(brightness[order], _waves_of(thumbnails, order)):
        for pair in _verify(thumbnails, order[one], order[other], mirrored):
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


def _light(thumbnails: Pictures) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of the luma of every thumbnail: `[n]` each."""
    brightness, contrast = np.empty((2, len(thumbnails)), np.float32)
    for places in _blocks(len(thumbnails), _PAIRS):
        shades = luma(thumbnails[places])
        brightness[places], contrast[places] = shades.mean(axis=(1, 2)), shades.std(axis=(1, 2))
    return brightness, contrast


def _waves_of(thumbnails: Pictures, order: Indices) -> NDArray[np.float16]:
    """What the thumbnails at `order` are like from afar: `low_waves` in half precision, 96 bytes a picture."""
    waves = np.empty((len(order), _WAVES**2 - 1), np.float16)
    for places in _blocks(len(order), _PAIRS):
        waves[places] = low_waves(luma(thumbnails[order[places]]))
    return waves


def _blocks(count: int, size: int) -> Iterator[Indices]:
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))


def _candidates(
    brightness: NDArray[np.float32], waves: NDArray[np.float16]
) -> Iterator[tuple[Indices, Indices, bool]]:
    """Pairs of places worth a closer look, upright and then mirrored; brightness `[n]` ascends.

    Of each picture at most CLOSEST with those that are brighter, the most alike: one burst must not cost a square.
    """
    for start in range(0, len(waves), _ROWS):
        stop = min(start + _ROWS, len(waves))
        end = int(np.searchsorted(brightness, brightness[stop - 1] + BRIGHTNESS, side="right"))
        found = np.empty((0, 4))
        for left in range(start, end, _COLUMNS):
            alike = _alike(brightness, waves, slice(start, stop), slice(left, min(left + _COLUMNS, end)))
            found = _closest(np.concatenate([found, alike]))
        one, other = found[:, :2].astype(np.int64).T
        for mirrored, likeness in ((False, found[:, 2] + found[:, 3]), (True, found[:, 2] - found[:, 3])):
            chosen = likeness > ALIKE
            yield one[chosen], other[chosen], mirrored


def _alike(
    brightness: NDArray[np.float32], waves: NDArray[np.float16], rows: slice, columns: slice
) -> NDArray[np.float64]:
    """Pairs above ALIKE `[k, 4]`: the places of both, and the cosine's two parts.

    A mirror turns the sign of the odd waves and no other, so that the sum of the parts is the cosine, and their
    difference that with the mirrored picture.
    """
    one, other = waves[rows].astype(np.float32), waves[columns].astype(np.float32)
    even, odd = one[:, :_EVEN] @ other[:, :_EVEN].T, one[:, _EVEN:] @ other[:, _EVEN:].T
    found = np.flatnonzero(even + np.abs(odd) > ALIKE)
    row, column = np.divmod(found, len(other))
    row, column = row + rows.start, column + columns.start
    near = (row < column) & (brightness[column] <= brightness[row] + BRIGHTNESS)
    pairs = np.stack([row, column, even.ravel()[found], odd.ravel()[found]], axis=1)
    return np.asarray(pairs[near], np.float64)


def _closest(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each picture the CLOSEST pairs in which it comes first, the most alike; found: as `_alike` gives them."""
    rows, likeness = found[:, 0], found[:, 2] + np.abs(found[:, 3])
    order = np.lexsort((-likeness, rows))
    rank = np.arange(len(found)) - np.searchsorted(rows[order], rows[order])
    return found[order[rank < CLOSEST]]


def low_waves(shades: NDArray[np.float32]) -> NDArray[np.float32]:
    """What pictures `[n, 16, 16]` are like from afar: vectors `[n, 48]` of length 1, brightness left out.

    First those that are the same in a mirror, then those whose sign turns there.
    """
    waves = cosines(_WAVES, shades.shape[1])
    grid = waves @ shades @ waves.T
    even, odd = grid[:, :, ::2].reshape(len(shades), -1)[:, 1:], grid[:, :, 1::2].reshape(len(shades), -1)
    found = np.concatenate([even, odd], axis=1)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6), np.float32)


def _verify(thumbnails: Pictures, one: Indices, other: Indices, mirrored: bool) -> Iterator[Pair]:
    for start in range(0, len(one), _PAIRS):
        left, right = one[start : start + _PAIRS], other[start : start + _PAIRS]
        upright = thumbnails[left]
        across = thumbnails[right][:, :, ::-1] if mirrored else thumbnails[right]
        # luma alone costs a third, and spares nearly every stranger the colours
        likely = measure_apart(luma(upright)[..., None], luma(across)[..., None]) <= 1.2 * APART
        left, right = left[likely], right[likely]
        apart = measure_apart(upright[likely].astype(np.float32), across[likely].astype(np.float32))
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
    level = other.mean(
        axis=(1, 2), keepdims=True
    )  # windows leave it as it is, and sums of squares lose less to it
    one, other = one - level, other - level
    windows = _windows(one.shape[1])
    columns = np.zeros(len(one), np.int64)  # of the windows: nothing cut off
    for _ in range(2):
        rows = _best(windows, _across(windows[columns], one), other)
        turned, target = _down(windows[rows], one).transpose(0, 2, 1, 3), other.transpose(0, 2, 1, 3)
        columns = _best(windows, turned, target)
    return np.asarray(_across(windows[columns], _down(windows[rows], one)) - other)


def _best(windows: NDArray[np.float32], pictures: Thumbnails, target: Thumbnails) -> Indices:
    """The window, for each picture, through whose rows it is nearest to its target: int64 `[n]`.

    The square of W x - y is x'W'Wx - 2 y'Wx and what does not depend on W: two products of 16 x 16 a picture instead
    of one for each window.
    """
    count, height, width, channels = pictures.shape
    flat, aim = (each.reshape(count, height, width * channels) for each in (pictures, target))
    turned = flat.transpose(0, 2, 1)
    squares = (windows.transpose(0, 2, 1) @ windows).reshape(len(windows), height**2)
    # matrix by vector, for each picture: BLAS would share one product of two matrices among threads that wait for each other
    errors = squares @ (flat @ turned).reshape(count, height**2, 1)
    errors -= 2 * windows.reshape(len(windows), height**2) @ (aim @ turned).reshape(count, height**2, 1)
    return np.asarray(np.argmin(errors[..., 0], axis=1), np.int64)


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
