"""Statistics of one image's pixels: luma, colour, tint, sharpness, hash. Pure functions.

Before it: decoded pixels. After it: `ImageInfo` carries them, the survey judges by them, `twins` compares
thumbnails.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from greyhound.cache.decode import LUMA, downsample, luma, upright
from greyhound.cache.nearby import THUMBNAIL

GREY_SPREAD: Final = 6.0
"""Levels: an image has no colour when no place of it, averaged down, has a larger difference between its
channels. Of 4,629 photographs the 18 without any colour measured at most 5, all others 10 and more
(docs/log.md). What is above is kept, which harms nothing."""
LIT: Final = 96.0
"""Levels: an image of which 95 % of the pixels are darker is judged as if it had more light."""
TINT_RESIDUE: Final = 4.8
"""Levels: a picture looks tinted when the colour of 99 % of its pixels is this near to a smooth curve over
luma. Tinted prints measured 2.1 to 5.7; so do white clothes in warm light, from 3.1 on: a person looks."""
TINT_GAP: Final = 0.25
"""Of the range of luma, at most so much lies between two neighbouring fiftieths of a tinted print's pixels,
because it has all tones: 0.06 to 0.19. Green shirts drawn on white have two: 0.28 to 0.56."""
TINT_STIFFNESS: Final = 3e-4
"""What it costs a coefficient of that curve to be large. The 60 levels of a strong tint cost next to nothing;
the 1,000 that would separate two shades a level apart cost more than any fit is worth."""
TINT_DETAIL: Final = 10.0
"""Standard deviation of luma below which a picture is too flat to tell a tint from a colour."""
TINT_STRENGTH: Final = 64.0
"""Levels of colour beyond which the light is coloured, as under a red lamp, not the print."""
LONGEST: Final = 16_384
"""Rows and columns, about, that are measured."""


def measure(pixels: NDArray[np.uint8], orientation: int = 1) -> dict[str, Any]:
    """Statistics of one decoded image `[H, W, 3]`, as stored: the fields of `ImageInfo` from pixels.

    Luma's mean is of all pixels, the rest of the image averaged down to a short side of at most 256 pixels.
    Of a side longer than LONGEST some rows are left out, because a strip would not shrink.
    """
    pixels = pixels[tuple(slice(None, None, max(1, side // LONGEST)) for side in pixels.shape[:2])]
    small = shrink(pixels, 256)
    shades = np.asarray(cv2.cvtColor(small.astype(np.float32), cv2.COLOR_RGB2GRAY), np.float32)
    low, high, blown = _spread(small)
    gain = max(1.0, LIT / max(high, 1.0))
    along, across = least_and_most_detail(shades)
    channels = cv2.split(small)
    thumbnail = upright(_average(small, (THUMBNAIL, THUMBNAIL)), orientation)
    return {
        "mean_luma": float(np.dot(LUMA, cv2.mean(pixels)[:3])),
        "colourfulness": colourfulness(channels),
        "grayscale": (grey := is_grey(channels, gain)),
        "tinted": not grey and is_tinted(_average(small, _reduced(small, 32)), gain),
        "luma_low": low,
        "luma_high": high,
        "blown": blown,
        "sharpness": sharpness(shades),
        "detail_along": along,
        "detail_across": across,
        "thumbnail": thumbnail.tobytes(),
    }


def _spread(pixels: NDArray[np.uint8]) -> tuple[float, float, float]:
    """The 5th and the 95th percentile of the luma of `[H, W, 3]`, in whole levels, and the share from 252."""
    shades = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    counts = cv2.calcHist([shades], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    low, high = np.searchsorted(counts.cumsum(), (0.05 * counts.sum(), 0.95 * counts.sum()))
    return float(low), float(high), float(counts[252:].sum() / counts.sum())


def colourfulness(channels: Sequence[cv2.typing.MatLike]) -> float:
    """Hasler & Suesstrunk 2003, of red, green and blue, uint8 `[H, W]` each.

    Its opponents are not computed for each pixel: (r + g - 2b)^2 is 2(r - b)^2 + 2(g - b)^2 - (r - g)^2.
    """
    red, green, blue = (cv2.sumElems(each)[0] for each in channels)
    pairs = itertools.combinations(channels, 2)
    red_green, red_blue, green_blue = (round(cv2.norm(*pair, cv2.NORM_L2SQR)) for pair in pairs)
    each = 1 / channels[0].size
    means = np.array([red - green, red + green - 2 * blue]) * each
    squares = np.array([red_green, 2 * red_blue + 2 * green_blue - red_green]) * each
    spreads = np.sqrt(np.maximum(squares - means * means, 0))
    return float(np.hypot(*spreads * [1, 0.5]) + 0.3 * np.hypot(*means * [1, 0.5]))


def is_grey(channels: Sequence[cv2.typing.MatLike], gain: float = 1.0) -> bool:
    """Whether three channels `[H, W]` have no colour: they are equal but for what compression adds.

    gain: what would light a dark image as any other, whose colours are as dark.
    """
    red, green, blue = channels
    spread = cv2.max(cv2.max(red, green), blue) - cv2.min(cv2.min(red, green), blue)
    return float(spread.max()) * gain <= GREY_SPREAD


def is_tinted(pixels: NDArray[np.uint8], gain: float = 1.0) -> bool:
    """Whether `[H, W, 3]`, with a short side of 32 pixels, looks like a tinted black-and-white photograph.

    In a tinted print colour is a smooth curve over luma, here a cubic by ridge regression, and luma has all
    tones. A white dog in snow is as pale, but its fur and the snow differ in colour where they hardly do in
    luma. gain: as in `is_grey`.
    """
    small = pixels.reshape(-1, 3) * np.float32(gain)
    shades = luma(small)
    if shades.std() < TINT_DETAIL:
        return False
    colours = small[:, ::2] - shades[:, None]
    if _nearly_all(colours) > TINT_STRENGTH:
        return False
    place = shades / 127.5 - 1
    square = place * place
    powers = np.stack([np.ones_like(place), place, square, square * place], axis=1)
    cost = np.diag([0, *[TINT_STIFFNESS * len(shades)] * 3])
    curve = powers @ np.linalg.solve(powers.T @ powers + cost, powers.T @ colours)
    if _nearly_all(colours - curve) > TINT_RESIDUE:
        return False
    tones = np.percentile(shades, np.arange(2, 99, 2))
    return bool(np.diff(tones).max() <= TINT_GAP * (tones[-1] - tones[0]))


def _nearly_all(colours: NDArray[np.float32]) -> float:
    """The length that 99 of 100 of `[n, 2]` do not exceed."""
    squares = colours[:, 0] ** 2 + colours[:, 1] ** 2
    place = int(0.99 * (len(squares) - 1))
    return float(np.sqrt(np.partition(squares, place)[place]))


def sharpness(shades: NDArray[np.float32]) -> float:
    """Variance of the Laplacian of luma `[H, W]` (Pech-Pacheco et al. 2000); 0 if too small."""
    if min(shades.shape) < 3:
        return 0.0
    _, spread = cv2.meanStdDev(cv2.Laplacian(shades, cv2.CV_32F)[1:-1, 1:-1])
    return float(spread[0, 0] ** 2)


def least_and_most_detail(shades: NDArray[np.float32]) -> tuple[float, float]:
    """Variance of luma's second derivative along the direction of the least, and of the most; or 0.

    Motion leaves no detail along its way, and all that lies across it. Three derivatives give that of every
    direction (Freeman & Adelson 1991). Luma is softened, because grain and JPEG came after the motion.
    """
    if min(shades.shape) < 5:
        return 0.0, 0.0
    soft = np.array([1, 2, 1]) / 4
    slope, bend = np.convolve(soft, [-0.5, 0, 0.5]), np.convolve(soft, [1, -2, 1])
    kernels = ((bend, soft), (slope, slope), (soft, bend))
    found = [cv2.sepFilter2D(shades, cv2.CV_32F, *each)[2:-2, 2:-2].ravel() for each in kernels]
    spread = np.array([[np.dot(one, other) for one in found] for other in found]) / found[0].size
    means = np.array([each.mean() for each in found])
    spread -= np.outer(means, means)
    angles = np.arange(36) * np.pi / 36
    ways = np.stack([np.cos(angles) ** 2, np.sin(2 * angles), np.sin(angles) ** 2])
    variances = (ways * (spread @ ways)).sum(axis=0)
    return float(variances.min()), float(variances.max())


def shrink(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """An image `[H, W, 3]` with a short side of at most `side`: each pixel the mean of those in its box.

    A pixel is in the box that its centre lies in, as in Pillow's BOX filter. Boxes of fractions of pixels
    blur, most of all where little is to be shrunk: sharpness would depend on the image's size.
    """
    halved = downsample(pixels, int(np.log2(max(1, min(pixels.shape[:2]) / side))))
    boxes = _boxes(halved.shape[:2], _reduced(pixels, side))
    return np.asarray(cv2.remap(halved, *boxes, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


@lru_cache(maxsize=8)
def _boxes(shape: tuple[int, int], size: tuple[int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The middle of each pixel's box, as `cv2.remap` takes it. shape: height and width. size: the new one."""
    across, down = _box_centres(shape[1], size[0]), _box_centres(shape[0], size[1])
    places = np.tile(across, (size[1], 1)), np.repeat(down[:, None], size[0], axis=1)
    return cv2.convertMaps(*places, cv2.CV_16SC2)


def _box_centres(length: int, count: int) -> NDArray[np.float32]:
    """Centres of `count` boxes of one or two of `length` pixels, where interpolation gives their mean."""
    ends = np.ceil(np.linspace(0, length, count + 1) - 0.5)
    return ((ends[:-1] + ends[1:] - 1) / 2).astype(np.float32)


def _average(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image `[H, W, 3]` averaged over areas; size: width and height."""
    narrow = cv2.resize(pixels, (size[0], len(pixels)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(narrow, size, interpolation=cv2.INTER_AREA), np.uint8)


def _reduced(pixels: NDArray[np.uint8], side: int) -> tuple[int, int]:
    """Width and height with a short side of at most `side`."""
    height, width = pixels.shape[:2]
    scale = min(1, side / min(height, width))
    return round(width * scale), round(height * scale)
