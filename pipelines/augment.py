"""All that is drawn: the order of an epoch, and each image's augmentation, from (seed, epoch, id, view).

Before it: ids, sizes and mean lumas from the pack. After it: `loader` asks for one batch after another; an
engine warps by the geometry and multiplies by the colour. Nothing else draws random numbers for images: what
one looked like in any epoch can be computed again. The order survives a change of batch size or of ranks,
not of the number of images.

Known, deliberate differences from torchvision: hue turns in YIQ, which is linear (torchvision shifts it in
HSV); contrast pivots on the mean luma of the whole original, not of the crop; nothing is clamped between the
steps; crop, rotation and shear are one interpolation: the photograph rotates into the window, not fill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Integral
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from greyhound.cache.decode import LUMA

Matrices = NDArray[np.float64]
Draws = dict[str, NDArray[np.float64]]

# The slots of an image's random numbers. Append only: a slot that moves changes every picture ever drawn.
_SLOTS: Final = (
    "scale", "across", "down", "rotation", "shear", "brightness", "contrast", "saturation", "hue", "flip",
)  # fmt: skip
MAX_LOG2_REDUCTION: Final = 3  # libjpeg decodes at 1/2, 1/4 and 1/8
_LUMA: Final = np.array(LUMA)
# NTSC; grey has I = Q = 0.
_YIQ: Final = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB: Final = np.linalg.inv(_YIQ)
_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
_LOW: Final = np.uint64(0xFFFFFFFF)
_SHIFT: Final = np.uint64(32)
_ON_THE_EDGE: Final = 1e-3  # source pixels; more than float32 rounds a place to
_LEVEL: Final = 1e-12  # source pixels a column: the edge is crossed nowhere in the row
_ORDER_ROUNDS: Final = 12  # after 6, some orders of 3 to 6 images are likelier; after 8 no test sees it
_ORDER: Final = 0xFFFFFFFF  # the counter's last word; the blocks of an image's numbers count up from 0


@dataclass(frozen=True)
class Augment:
    """What may happen to an image, in torchvision's units; the defaults are the original recipe's."""

    size: int = 256
    """Side of the square output, pixels."""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """What becomes `size` at scale 1. crop: the short side; the window shows a part of a wide picture. pad:
    the long side; the window shows all of it, with bars of `fill`. squash: both; the aspect ratio is lost."""
    scale: tuple[float, float] = (0.8, 1.2)
    """That side becomes s * size, s uniform in this range (the original's RandomResizedCrop)."""
    placement: Literal["random", "centre"] = "random"
    """Where the window lies in the scaled image."""
    rotation: float = 15.0
    """Degrees to either side."""
    shear: float = 10.0
    """Degrees to either side, along x."""
    flip: float = 0.0
    """Probability of a mirror image."""
    brightness: float = 0.25
    """The factor is uniform in 1 - b .. 1 + b; likewise contrast and saturation."""
    contrast: float = 0.25
    saturation: float = 0.25
    hue: float = 0.1
    """Turns of the colour circle to either side; 0.1 is 36 degrees."""
    fill: int = 0
    """Level, 0..255, of what lies outside the image."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted after the division by 255; with `std`, as pretrained weights expect. The seed had none."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        """Refuse numbers that no image could have."""
        checks = {
            f"size is {self.size!r}; expected at least 1 pixel": isinstance(self.size, Integral)
            and self.size >= 1,
            f"scale is {self.scale}; expected 0 < low <= high": 0 < self.scale[0] <= self.scale[1],
            f"rotation is {self.rotation}; expected 0..180 degrees": 0 <= self.rotation <= 180,
            f"shear is {self.shear}; expected 0..<90 degrees": 0 <= self.shear < 90,
            f"flip is {self.flip}; expected a probability": 0 <= self.flip <= 1,
            f"hue is {self.hue}; expected 0..0.5 turns": 0 <= self.hue <= 0.5,
            f"fill is {self.fill}; expected 0..255": 0 <= self.fill <= 255,
            f"std is {self.std}; expected positive numbers": min(self.std) > 0,
        }
        for name in ("brightness", "contrast", "saturation"):
            checks[f"{name} is {getattr(self, name)}; expected 0..1"] = 0 <= getattr(self, name) <= 1
        for message, holds in checks.items():
            if not holds:
                raise ValueError(f"augment: {message}")

    def crops(self) -> Augment:
        """The same images under random resized crops only: the views of test-time augmentation."""
        return replace(
            self, rotation=0.0, shear=0.0, flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
        )

    def centre(self) -> Augment:
        """No randomness: scale 1, the window is the centre."""
        return replace(self.crops(), scale=(1.0, 1.0), placement="centre")

    def to_pixels(self, images: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The network's floats `[B, 3, S, S]` as pixels, uint8 `[B, S, S, 3]`: `mean` and `std` undone."""
        levels = images.transpose(0, 2, 3, 1) * np.array(self.std) + np.array(self.mean)
        return np.asarray(np.clip(np.rint(levels * 255), 0, 255), dtype=np.uint8)


def draw(
    augment: Augment,
    seed: int,
    epoch: int,
    ids: NDArray[np.int64],
    sizes: NDArray[np.int32],
    view: int | NDArray[np.int64] = 0,
    lumas: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The augmentation of `n` images, each a function of (seed, epoch, its id, view) alone.

    ids: int64 `[n]`, 0 <= id < 2**32. sizes: int32 `[n, 2]`, width and height after EXIF rotation, pixels.
    view: of all images, or int64 `[n]`, of each.
    lumas: float32 `[n]`, mean luma of each image, 0..255, on which contrast pivots; without them mid-grey.

    Returns geometry, float32 `[n, 3, 3]`: output pixel -> source pixel, homogeneous (x, y, 1), origin at the
    corner; and colour, float32 `[n, 3, 4]`: RGB in 0..255 -> the network's floats.
    """
    numbers = _numbers(seed, epoch, ids, view)
    if lumas is None:
        lumas = np.full(len(ids), 127.5, dtype=np.float32)
    geometry = _window(augment, numbers, sizes) @ _affine(augment, numbers)
    return geometry.astype(np.float32), _colour(augment, numbers, lumas).astype(np.float32)


def log2_reduction(augment: Augment, sizes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Before the warp each image is reduced, antialiased, to 1/2**r of its sides: r, 0..3, int32 `[n, 2]`.

    The largest that leaves what `fit` makes `augment.size` at that or more. The warp then reduces by less
    than 2 at scale 1, where bilinear interpolation needs no antialiasing; and libjpeg decodes directly at 1/2
    to 1/8. Along x and y of `sizes`, int32 `[n, 2]`; only squash reduces them differently.
    """
    fitted, found = _fitted(augment, sizes), np.zeros(sizes.shape, dtype=np.int32)
    for exponent in range(1, MAX_LOG2_REDUCTION + 1):
        found += fitted >= augment.size << exponent
    return found


def to_stored(
    geometry: NDArray[np.float32],
    sizes: NDArray[np.int32],
    orientations: NDArray[np.uint8],
    log2_reduction: NDArray[np.int32],
) -> NDArray[np.float32]:
    """Continue the geometry from the upright image to the pixels that a decoder delivers.

    EXIF orientation and the reduction are matrices like any other, so neither costs an image operation.

    geometry: float32 `[n, ..., 3, 3]`, as `draw` returns it. sizes: int32 `[n, 2]`, upright. orientations:
    uint8 `[n]`, EXIF 1..8. log2_reduction: int32 `[n, 2]`, along the stored x and y. Returns float32 of
    geometry's shape.
    """
    stored = _ORIENT[orientations].copy()
    stored[:, :2, 2] = np.einsum("nij,nj->ni", _CORNERS[orientations], sizes)
    stored[:, :2] *= (0.5**log2_reduction)[:, :, None]
    stored = stored.reshape(len(stored), *[1] * (geometry.ndim - 3), 3, 3)
    return (stored @ geometry).astype(np.float32)


def spans(
    geometry: NDArray[np.float32], sizes: NDArray[np.int32], log2_reduction: NDArray[np.int32], size: int
) -> NDArray[np.int32]:
    """Where in the window the image is: of each row, its first column and the one past its last.

    A pixel shows the image if its centre lies in it, edge included; otherwise it is `fill`. So interpolation
    repeats the image's edge for the half pixel that it reaches past it, as Pillow's does, and mixes in none.

    geometry: float32 `[n, K, 3, 3]`, as `to_stored` returns it. sizes: int32 `[n, 2]`, stored.
    log2_reduction: int32 `[n, 2]`. size: S. Returns int32 `[n, K, 2, S]`, firsts and lasts in 0..S; a row
    without the image has no column between them.
    """
    across, down, start = np.moveaxis(geometry[..., :2, :].astype(np.float64), -1, 0)  # `[n, K, 2]`, x and y
    across = np.where(np.abs(across) < _LEVEL, _LEVEL, across)
    near, far = -_ON_THE_EDGE, (sizes * 0.5**log2_reduction)[:, None] + _ON_THE_EDGE
    enters = (np.where(across > 0, near, far) - start) / across  # the column where row 0 comes into the image
    enter = enters[..., None] - (down / across)[..., None] * (np.arange(size) + 0.5)
    leave = enter + ((far - near) / np.abs(across))[..., None]
    edges = np.stack([np.ceil(enter.max(axis=2) - 0.5), np.floor(leave.min(axis=2) + 0.5)], axis=2)
    return edges.clip(0, size).astype(np.int32)


def philox(counter: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike], seed: int) -> NDArray[np.uint32]:
    """Four random 32-bit words for every counter: Philox4x32-10, which has no state.

    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    counter: four arrays of unsigned 32-bit integers that broadcast to one shape `[...]`.
    seed: the key, 0 <= seed < 2**64.
    Returns uint32 `[..., 4]`, equal to the reference implementation's words.
    """
    a, b, c, d = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    keys = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(_ROUNDS):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        first, second = map(np.uint64, keys)
        a, b = (right >> _SHIFT) ^ b ^ first, right & _LOW
        c, d = (left >> _SHIFT) ^ d ^ second, left & _LOW
        keys = [(key + step) & 0xFFFFFFFF for key, step in zip(keys, _WEYL, strict=True)]
    return np.stack([a, b, c, d], axis=-1).astype(np.uint32)


def uniform(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Map 32-bit words to the open interval (0, 1): `(word + 1/2) / 2**32`; the shape stays."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32


def _numbers(seed: int, epoch: int, ids: NDArray[np.int64], view: int | NDArray[np.int64]) -> Draws:
    """Uniform numbers in (0, 1), one array `[n]` a slot."""
    blocks = np.arange(-(-len(_SLOTS) // 4))
    words = philox((np.asarray(ids)[:, None], epoch, np.reshape(view, (-1, 1)), blocks), seed)
    return dict(zip(_SLOTS, uniform(words).reshape(len(ids), 4 * len(blocks)).T, strict=False))


def _between(number: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    return low + (high - low) * number


def _fitted(augment: Augment, sizes: NDArray[np.int32]) -> NDArray[np.int32]:
    """The lengths along x and y that become `size` at scale 1; int32 `[n, 2]`."""
    if augment.fit == "squash":
        return sizes
    side = sizes.min(axis=1) if augment.fit == "crop" else sizes.max(axis=1)
    return np.stack([side, side], axis=1)


def _window(augment: Augment, numbers: Draws, sizes: NDArray[np.int32]) -> Matrices:
    """Window pixel -> source pixel: shift to the window's place, then undo the scaling; `[n, 3, 3]`."""
    scale = _between(numbers["scale"], *augment.scale)[:, None] * augment.size / _fitted(augment, sizes)
    slack = sizes * scale - augment.size  # negative where the window is larger than the image
    place = np.stack([numbers["across"], numbers["down"]], axis=1) if augment.placement == "random" else 0.5
    matrices = np.zeros((len(sizes), 3, 3))
    matrices[:, [0, 1], [0, 1]] = 1 / scale
    matrices[:, :2, 2] = slack * place / scale
    matrices[:, 2, 2] = 1
    return matrices


def _affine(augment: Augment, numbers: Draws) -> Matrices:
    """Output pixel -> window pixel: torchvision's RandomAffine about the centre, inverted; `[n, 3, 3]`."""
    angle = np.deg2rad(_between(numbers["rotation"], -augment.rotation, augment.rotation))
    lean = np.tan(np.deg2rad(_between(numbers["shear"], -augment.shear, augment.shear)))
    mirror = np.where(numbers["flip"] < augment.flip, -1.0, 1.0)
    cos, sin = np.cos(angle), np.sin(angle)
    matrices = np.zeros((len(angle), 3, 3))
    matrices[:, 0, 0] = (cos - lean * sin) * mirror
    matrices[:, 0, 1] = sin + lean * cos
    matrices[:, 1, 0] = -sin * mirror
    matrices[:, 1, 1] = cos
    matrices[:, 2, 2] = 1
    centre = augment.size / 2
    matrices[:, :2, 2] = centre - centre * matrices[:, :2, :2].sum(axis=2)
    return matrices


def _colour(augment: Augment, numbers: Draws, lumas: NDArray[np.float32]) -> Matrices:
    """Brightness, contrast, saturation, hue, /255, mean and std as one matrix; `[n, 3, 4]`."""
    brightness = _between(numbers["brightness"], 1 - augment.brightness, 1 + augment.brightness)
    contrast = _between(numbers["contrast"], 1 - augment.contrast, 1 + augment.contrast)
    saturation = _between(numbers["saturation"], 1 - augment.saturation, 1 + augment.saturation)
    turn = _between(numbers["hue"], -augment.hue, augment.hue) * 2 * np.pi
    linear = (brightness * contrast)[:, None, None] * (_turn_hue(turn) @ _saturate(saturation))
    pivot = (1 - contrast) * brightness * lumas  # grey passes saturation and hue unchanged
    mean, std = np.array(augment.mean), np.array(augment.std)
    offset = (pivot[:, None] / 255 - mean) / std
    return np.concatenate([linear / (255 * std)[:, None], offset[:, :, None]], axis=2)


def _saturate(factor: NDArray[np.float64]) -> Matrices:
    factor = factor[:, None, None]
    return np.asarray(factor * np.eye(3) + (1 - factor) * _LUMA)


def _turn_hue(turn: NDArray[np.float64]) -> Matrices:
    """Rotate the chroma plane of YIQ by `turn` radians."""
    rotation = np.zeros((len(turn), 3, 3))
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = np.cos(turn)
    rotation[:, 1, 2] = np.sin(turn)
    rotation[:, 2, 1] = -np.sin(turn)
    return np.asarray(_RGB @ rotation @ _YIQ)


def _orientation_tables() -> tuple[Matrices, Matrices]:
    """For EXIF 1..8: the linear map upright -> stored, and which sides of the upright image it shifts by."""
    linear = np.tile(np.eye(3), (9, 1, 1))  # files that carry 0 mean nothing by it
    linear[1:, :2, :2] = [  # stored x and y, each as (along upright x, along upright y)
        ((1, 0), (0, 1)), ((-1, 0), (0, 1)), ((-1, 0), (0, -1)), ((1, 0), (0, -1)),
        ((0, 1), (1, 0)), ((0, 1), (-1, 0)), ((0, -1), (-1, 0)), ((0, -1), (1, 0)),
    ]  # fmt: skip
    return linear, np.where(linear[:, :2, :2] < 0, 1.0, 0.0)


_ORIENT, _CORNERS = _orientation_tables()


def order_at(positions: NDArray[np.int64], count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Which of `count` images each position of an epoch's order has; over all positions, a permutation.

    positions: int64 `[n]`, of 0..count; count < 2**32. Each is found by itself, from (count, seed, epoch),
    without a table of the others: a resumed training and each rank ask for theirs alone.

    A Feistel network on a square of at least `count` places, whose round functions are tables of Philox's
    words. A position that it takes outside of `count` goes through again until it is inside.
    Black, Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
    """
    side = 2 * math.ceil(math.sqrt(count) / 2)  # even: on an odd square no permutation would be an odd one
    tables = _round_tables(side, seed, epoch)

    def permute(places: NDArray[np.int64]) -> NDArray[np.int64]:
        left, right = np.divmod(places, side)
        for table in tables:
            moved = (left + table[right]).view(np.uint64)
            # less than `side`: what is not wraps to a huge number
            left, right = right, np.minimum(moved, moved - np.uint64(side)).view(np.int64)
        return left * side + right

    places = permute(positions)
    while len(outside := np.flatnonzero(places >= count)):
        places[outside] = permute(places[outside])
    return places


@lru_cache(maxsize=2)
def _round_tables(side: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Of each round a number in 0..side for each of `side` places: int64 `[rounds, side]`."""
    words = philox((np.arange(-(-_ORDER_ROUNDS * side // 4)), epoch, 0, _ORDER), seed).astype(np.uint64)
    numbers = words.ravel()[: _ORDER_ROUNDS * side] * np.uint64(side) >> _SHIFT
    return numbers.astype(np.int64).reshape(_ORDER_ROUNDS, side)


def epoch_order(ids: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """All of `ids` as an epoch shuffles them, whatever their order. ids: int64 `[n]`, each at most once."""
    return np.sort(ids)[order_at(np.arange(len(ids)), len(ids), seed, epoch)]


def even_bounds(count: int, batch_size: int, start: int = 0) -> list[tuple[int, int]]:
    """Cut the positions `start..count` into the fewest batches of at most `batch_size`, as equal as can be.

    Training uses this: no epoch ends in a batch of one image, whose statistics would be the last that
    BatchNorm sees. Cutting again from any of its own bounds gives the same remaining bounds.
    """
    left = count - start
    batches = -(-left // batch_size)
    sizes = [(left + k) // batches for k in range(batches)]
    stops = np.cumsum(sizes, dtype=np.int64) + start
    return [(int(stop) - size, int(stop)) for stop, size in zip(stops, sizes, strict=True)]


def full_bounds(count: int, batch_size: int, start: int = 0) -> list[tuple[int, int]]:
    """Cut the positions `start..count` into full batches and a short last one, as evaluation does."""
    return [(low, min(low + batch_size, count)) for low in range(start, count, batch_size)]


def rank_share(ids: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """The part of one global batch that `rank` of `world_size` reads; all of them together are the batch."""
    return ids[rank::world_size]
