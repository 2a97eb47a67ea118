"""Lay one picture on another: how far apart two thumbnails are, how alike two close-ups, where they differ.

Before it: thumbnails, and close-ups of the few that seem to be twins. After it: `twins` decides.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from greyhound.cache.decode import luma

Pictures = NDArray[np.float32]

COLOUR_SHIFT: Final = 6.0
"""Levels by which any channel's mean of twins may differ once they are aligned."""
UNLIKE: Final = 0.6
"""Correlation below which a block of two registered pictures shows two different things."""
_BLOCKS: Final = 8
"""Blocks along a side, by which registered pictures are compared."""
_CUTS: Final = (0.0, 0.02, 0.04, 0.06, 0.08)
"""What may be cut off each side of either picture, as shares of it; of a close-up, up to 12 %."""
_CLOSE_CUTS: Final = (*_CUTS, 0.1, 0.12)
_BLOCK_GRAIN: Final = 3.0
"""Levels of contrast, of a block, that compression and grain may account for."""
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


def unlike_share(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Share of the blocks in which two close-ups `[side, side]` differ once registered; 1 if they cannot be.

    Different things before one backdrop share all but a part of the picture: that part counts, and not the
    mean. Registration: an affine map by ECC (Evangelidis & Psarakis 2008), coarse to fine.
    """
    import cv2

    side = len(one)
    left, right = (cv2.GaussianBlur(each.astype(np.float32), (0, 0), side / 107) for each in (one, other))
    affine = np.eye(2, 3, dtype=np.float32)
    steps = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    everywhere = np.ones((side, side), np.uint8)
    for reduced, blur in ((4, 5), (2, 5), (1, 1)):
        smaller = (side // reduced, side // reduced)
        ours, theirs = (cv2.resize(each, smaller, interpolation=cv2.INTER_AREA) for each in (left, right))
        affine[:, 2] /= reduced
        try:
            mask = everywhere[: smaller[0], : smaller[1]]
            found = cv2.findTransformECC(ours, theirs, affine, cv2.MOTION_AFFINE, steps, mask, blur)
        except cv2.error:  # it does not converge: nothing in them corresponds
            return 1.0
        affine = np.asarray(found[1], np.float32)
        affine[:, 2] *= reduced
    flags, size = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, (side, side)
    moved = cv2.warpAffine(right, affine, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpAffine(np.ones_like(right), affine, size, flags=flags)
    common = _cut_up(inside).mean(axis=1) > 0.9
    if common.mean() < 0.3:
        return 1.0
    blocks = (_cut_up(each)[common] for each in (left, moved))
    ours, theirs = (each - each.mean(axis=1, keepdims=True) for each in blocks)
    floor = _BLOCK_GRAIN**2
    alike = 2 * ((ours * theirs).mean(axis=1) + floor) / ((ours**2 + theirs**2).mean(axis=1) + 2 * floor)
    return float((alike < UNLIKE).mean())


def _cut_up(picture: NDArray[Any]) -> NDArray[Any]:
    """The blocks of a picture `[side, side]`: `[_BLOCKS**2, pixels]`."""
    size = len(picture) // _BLOCKS
    return picture.reshape(_BLOCKS, size, _BLOCKS, size).swapaxes(1, 2).reshape(_BLOCKS**2, -1)


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
    windows = crop_windows(one.shape[1], cuts)
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
def crop_windows(side: int, cuts: tuple[float, ...]) -> NDArray[np.float32]:
    """Matrices `[k, side, side]` that cut off either end and stretch the rest; the first cuts nothing."""
    found = []
    for before in cuts:
        for after in cuts:
            places = before * side + (np.arange(side) + 0.5) * (1 - before - after) - 0.5
            distance = np.abs(np.clip(places, 0, side - 1)[:, None] - np.arange(side))
            found.append(np.maximum(0, 1 - distance))
    return np.array(found, np.float32)
