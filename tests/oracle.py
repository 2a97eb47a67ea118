"""The slow, obvious reference: what both engines must deliver, in plain numpy, from the same arguments.

Before it: decoded pixels and the matrices that `pipelines.augment` draws. After it: the tests hold the engines
against it. Every line is the definition, none is an optimisation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
ON_THE_EDGE = 1e-3
"""So many source pixels past its edge a place still is in the image: rounding decides nothing."""


def downsample(pixels: Pixels, across: int, down: int | None = None) -> Pixels:
    """The mean of every block of 2**across x 2**down pixels, default a square; uint8 `[H', W', 3]`.

    Where the size is no multiple, the last row and column repeat.
    """
    wide, high = 2**across, 2 ** (across if down is None else down)
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % high), (0, -width % wide), (0, 0)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // high, high, padded.shape[1] // wide, wide, 3)
    return np.asarray(np.floor(blocks.mean(axis=(1, 3)) + 0.5), dtype=np.uint8)


def warp(
    pixels: Pixels, geometry: Floats, size: int, fill: int = 0, sides: tuple[float, float] | None = None
) -> Pixels:
    """For every output pixel, the bilinear blend of the four pixels around where geometry says that it comes from.

    geometry: `[3, 3]`, output -> source, corner origin. A neighbour outside the image is the nearest inside. An output
    pixel whose centre comes from outside the image, `sides` wide and high, default all the pixels, is `fill`.
    """
    wide, high = sides or pixels.shape[1::-1]
    down, across = np.mgrid[:size, :size] + 0.5  # the centre of every output pixel
    x, y, w = geometry.astype(np.float64) @ np.stack([across, down, np.ones_like(down)]).reshape(3, -1)
    outside = (np.minimum(x, y) < -ON_THE_EDGE) | (x > wide + ON_THE_EDGE) | (y > high + ON_THE_EDGE)
    x, y = x / w - 0.5, y / w - 0.5  # in steps from the centre of the first source pixel
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, bottom = x - left, y - top  # weights
    blend = (
        _at(pixels, left, top) * ((1 - right) * (1 - bottom))[:, None]
        + _at(pixels, left + 1, top) * (right * (1 - bottom))[:, None]
        + _at(pixels, left, top + 1) * ((1 - right) * bottom)[:, None]
        + _at(pixels, left + 1, top + 1) * (right * bottom)[:, None]
    )
    blend[outside] = fill
    return np.asarray(np.floor(blend + 0.5), dtype=np.uint8).reshape(size, size, 3)


def render(
    pixels: Pixels,
    geometry: Floats,
    colour: Floats,
    size: int,
    fill: int = 0,
    sides: tuple[float, float] | None = None,
) -> Floats:
    """The whole path after decoding and halving: warp, round to uint8, multiply by the colour matrix `[3, 4]`."""
    warped = warp(pixels, geometry, size, fill, sides).astype(np.float64)
    return (warped @ colour[:, :3].T.astype(np.float64) + colour[:, 3]).astype(np.float32)


def mix(images: Floats, mixing: Floats) -> Floats:
    """Every view of every image, and its partner's share of each pixel: x = (1 - share) * own + share * partner's.

    images: `[B, K, S, S, 3]`. mixing: `[B, K, 2, S]`, of rows and of columns. The partner is the image before, in the
    same view; the first image's is the last.
    """
    mixed = images.copy()
    for place, view in np.ndindex(images.shape[:2]):
        rows, columns = mixing[place, view]
        share = np.outer(rows, columns)[:, :, None]
        mixed[place, view] = (1 - share) * images[place, view] + share * images[place - 1, view]
    return mixed


def psnr(one: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    """Peak signal-to-noise ratio of two images of levels 0..255, decibels."""
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def _at(pixels: Pixels, x: NDArray[np.int_], y: NDArray[np.int_]) -> NDArray[np.float64]:
    height, width = pixels.shape[:2]
    return pixels[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)].astype(np.float64)
