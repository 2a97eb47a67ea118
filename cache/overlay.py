"""Lay one picture on another: how far apart two thumbnails are, and how alike two close-ups in detail.

Before it: thumbnails, and close-ups of the few that seem to be twins. After it: `twins` decides.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from greyhound.cache.stats import luma

Pictures = NDArray[np.float32]

COLOUR_SHIFT: Final = 6.0
"""Levels by which any channel's mean of twins may differ once they are aligned."""
_CUTS: Final = (0.0, 0.02, 0.04, 0.06, 0.08)
"""What may be cut off each side of either picture, as shares of it; of a close-up, up to 12 %."""
_CLOSE_CUTS: Final = (*_CUTS, 0.1, 0.12)
_AROUND: Final = 2
"""Pixels each way over which a close-up's light and contrast are evened out."""
_GRAIN: Final = 4.0
"""Levels: less contrast than compression adds is not raised to that of its surroundings."""


def aligned_rmse(one: Pictures, other: Pictures) -> NDArray[np.float32]:
    """RMSE of each pair at the crop that fits best, as a share of the contrast: float32 `[n]`.

    one, other: RGB `[n, 16, 16, 3]` or luma `[n, 16, 16, 1]`. Infinite where a colour is another.
    """
    one, other = _soften(one), _soften(other)
    contrast = np.minimum(_contrast(one), _contrast(other))
    differences = np.stack([_lay_upon(one, other), _lay_upon(other, one)])
    shift = np.abs(differences.mean(axis=(2, 3))).max(axis=2)
    error = np.sqrt((differences**2).mean(axis=(2, 3, 4)))
    apart = np.where(shift <= COLOUR_SHIFT, error / np.maximum(contrast, 1e-6), np.inf)
    return np.asarray(apart.min(axis=0), np.float32)


def normalised_cross_correlation(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float32]:
    """Normalised cross-correlation of each pair at the crop that fits best: float32 `[n]`, at most 1.

    one, other: luma `[n, side, side]`, whose light and contrast are evened out first: of two portraits before
    one wall the wall and the outlines are alike, and little else.
    """
    one, other = (_soften(np.asarray(each, np.float32)[..., None]) for each in (one, other))
    found = []
    for moved, target in ((one, other), (other, one)):
        left, right = _even_out(target + _lay_upon(moved, target, _CLOSE_CUTS)), _even_out(target)
        length = np.sqrt((left**2).sum(axis=(1, 2, 3)) * (right**2).sum(axis=(1, 2, 3)))
        found.append((left * right).sum(axis=(1, 2, 3)) / np.maximum(length, 1e-6))
    return np.asarray(np.maximum(*found), np.float32)


def _even_out(pictures: Pictures) -> Pictures:
    """Every place by the mean and the standard deviation of what lies around it."""
    near = np.abs(np.arange(pictures.shape[1])[:, None] - np.arange(pictures.shape[1])) <= _AROUND
    kernel = np.asarray(near / near.sum(axis=1, keepdims=True), np.float32)
    level, square = (_across(kernel, _down(kernel, each)) for each in (pictures, pictures**2))
    return np.asarray((pictures - level) / (np.sqrt(np.maximum(square - level**2, 0)) + _GRAIN), np.float32)


def _contrast(pictures: Pictures) -> NDArray[np.float32]:
    shades = luma(pictures) if pictures.shape[-1] == 3 else pictures[..., 0]
    return np.asarray(shades.std(axis=(1, 2)), np.float32)


def _soften(pictures: Pictures) -> Pictures:
    """Blur by (1, 2, 1) both ways: what is left does not depend on where a crop's pixels began."""
    side = pictures.shape[1]
    kernel = np.maximum(0, 2 - np.abs(np.arange(side)[:, None] - np.arange(side))).astype(np.float32)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return _across(kernel, _down(kernel, pictures))


def _lay_upon(one: Pictures, other: Pictures, cuts: tuple[float, ...] = _CUTS) -> Pictures:
    """`[n, side, side, channels]`: the crop of `one` nearest to `other`, minus `other`."""
    # windows leave the level as it is, and sums of squares lose less without it
    level = other.mean(axis=(1, 2), keepdims=True)
    one, other = one - level, other - level
    windows = _windows(one.shape[1], cuts)
    columns = np.zeros(len(one), np.int64)  # of the windows: nothing cut off
    for _ in range(2):
        rows = _best(windows, _across(windows[columns], one), other)
        turned, target = _down(windows[rows], one).transpose(0, 2, 1, 3), other.transpose(0, 2, 1, 3)
        columns = _best(windows, turned, target)
    return np.asarray(_across(windows[columns], _down(windows[rows], one)) - other)


def _best(windows: NDArray[np.float32], pictures: Pictures, target: Pictures) -> NDArray[np.int64]:
    """The window, for each picture, through whose rows it is nearest to its target: int64 `[n]`."""
    count, height, width, channels = pictures.shape
    flat, aim = (each.reshape(count, height, width * channels) for each in (pictures, target))
    turned = flat.transpose(0, 2, 1)
    squares = (windows.transpose(0, 2, 1) @ windows).reshape(len(windows), height**2)
    # matrix by vector: BLAS would share a product of two matrices among threads that wait for each other
    errors = squares @ (flat @ turned).reshape(count, height**2, 1)
    errors -= 2 * windows.reshape(len(windows), height**2) @ (aim @ turned).reshape(count, height**2, 1)
    return np.asarray(np.argmin(errors[..., 0], axis=1), np.int64)


def _down(matrix: NDArray[np.float32], pictures: Pictures) -> Pictures:
    """Rows mixed by a matrix `[side, side]`, or one for each picture."""
    count, height, width, channels = pictures.shape
    mixed = np.matmul(matrix, pictures.reshape(count, height, width * channels))
    return np.asarray(mixed.reshape(pictures.shape), np.float32)


def _across(matrix: NDArray[np.float32], pictures: Pictures) -> Pictures:
    """Columns mixed by a matrix `[side, side]`, or one for each picture."""
    return _down(matrix, pictures.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


@lru_cache
def _windows(side: int, cuts: tuple[float, ...]) -> NDArray[np.float32]:
    """Matrices `[k, side, side]` that cut off either end and stretch the rest; the first cuts nothing."""
    found = []
    for before in cuts:
        for after in cuts:
            places = before * side + (np.arange(side) + 0.5) * (1 - before - after) - 0.5
            distance = np.abs(np.clip(places, 0, side - 1)[:, None] - np.arange(side))
            found.append(np.maximum(0, 1 - distance))
    return np.array(found, np.float32)
