"""All that is drawn of an image's augmentation, from (seed, epoch, id, view).

Before it: ids, sizes and mean lumas from the pack. After it: `loader` asks for one batch after another; an
engine warps by the geometry and multiplies by the colour. `order` and `mixing` draw from the same generator,
and nothing else draws random numbers for images: what one looked like in any epoch can be computed again.

Known, deliberate differences from torchvision: hue turns in YIQ, which is linear (torchvision shifts it in
HSV); contrast pivots on the mean luma of the whole original, not of the crop; nothing is clamped between the
steps; crop, rotation and shear are one interpolation: the photograph rotates into the window, not fill.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
# RandAugment's operations, each with what a magnitude of 30 is: torchvision's, where they are matrices.
_OPERATIONS: Final = {
    "identity": 0.0, "shear x": 0.3, "shear y": 0.3, "translate x": 150 / 331, "translate y": 150 / 331,
    "rotation": np.pi / 6, "brightness": 0.9, "saturation": 0.9, "contrast": 0.9,
}  # fmt: skip
_OPERATION_BLOCK: Final = 0x100  # of the counter's last word, where the slots' blocks count up from 0
_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
_LOW: Final = np.uint64(0xFFFFFFFF)
_SHIFT: Final = np.uint64(32)
_ON_THE_EDGE: Final = 1e-3  # source pixels; more than float32 rounds a place to
_LEVEL: Final = 1e-12  # source pixels a column: the edge is crossed nowhere in the row
_NOISE: Final = 0xFFFFFFFE  # the counter's last word


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
    crop_scale: tuple[float, float] | None = None
    """The same of the crops of test-time augmentation, where `fit` is crop; None: `scale`, as in training."""
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
    randaugment: int = 0
    """Operations of RandAugment (Cubuk et al. 2019) after all of these; 0: none."""
    magnitude: int = 9
    """Their magnitude, 0..30, on torchvision's scale."""
    mixup: float = 0.0
    """alpha of mixup (Zhang et al. 2018): a share, from Beta(alpha, alpha), is another image; 0: none."""
    cutmix: float = 0.0
    """alpha of CutMix (Yun et al. 2019): the share is a box of the other image; 0: none. With mixup too, each
    image takes one of the two, both as likely."""
    fill: int = 0
    """Level, 0..255, of what lies outside the image."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted after the division by 255; with `std`, as pretrained weights expect. The seed had none."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        """Refuse numbers that no image could have."""
        crop_scale = self.crop_scale or self.scale
        checks = {
            f"size is {self.size!r}; expected at least 1 pixel": isinstance(self.size, Integral)
            and self.size >= 1,
            f"scale is {_say(self.scale)}; expected 0 < low <= high, finite": _is_range(self.scale),
            f"crop-scale is {_say(crop_scale)}; expected 0 < low <= high, finite": _is_range(crop_scale),
            f"rotation is {self.rotation}; expected 0..180 degrees": 0 <= self.rotation <= 180,
            f"shear is {self.shear}; expected 0..<90 degrees": 0 <= self.shear < 90,
            f"flip is {self.flip}; expected a probability": 0 <= self.flip <= 1,
            f"hue is {self.hue}; expected 0..0.5 turns": 0 <= self.hue <= 0.5,
            f"randaugment is {self.randaugment}; expected 0..16 operations": self.randaugment in range(17),
            f"magnitude is {self.magnitude}; expected 0..30": 0 <= self.magnitude <= 30,
            f"fill is {self.fill}; expected 0..255": 0 <= self.fill <= 255,
            f"std is {_say(self.std)}; expected positive numbers": min(self.std) > 0,
        }
        for name in ("brightness", "contrast", "saturation"):
            checks[f"{name} is {getattr(self, name)}; expected 0..1"] = 0 <= getattr(self, name) <= 1
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            checks[f"{name} is {alpha}; expected 0, or 0.001..1000"] = alpha == 0 or 0.001 <= alpha <= 1000
        for message, holds in checks.items():
            if not holds:
                raise ValueError(f"--augment.{message}")

    def crops(self) -> Augment:
        """The same images under random resized crops only: the views of test-time augmentation."""
        scale = self.crop_scale if self.crop_scale and self.fit == "crop" else self.scale
        return replace(
            self, scale=scale, rotation=0.0, shear=0.0, flip=0.0, brightness=0.0,
            contrast=0.0, saturation=0.0, hue=0.0, randaugment=0, mixup=0.0, cutmix=0.0,
        )  # fmt: skip

    @property
    def mixes(self) -> bool:
        """Whether an image takes a share of another one."""
        return bool(self.mixup or self.cutmix)

    def centre(self) -> Augment:
        """No randomness: scale 1, the window is the centre."""
        return replace(self.crops(), scale=(1.0, 1.0), placement="centre")

    def to_pixels(self, images: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The network's floats `[B, 3, S, S]` as pixels, uint8 `[B, S, S, 3]`: `mean` and `std` undone."""
        levels = images.transpose(0, 2, 3, 1) * np.array(self.std) + np.array(self.mean)
        return np.asarray(np.clip(np.rint(levels * 255), 0, 255), dtype=np.uint8)


def _say(values: Sequence[float]) -> str:
    """As on a command line."""
    return " ".join(map(str, values))


def _is_range(scale: tuple[float, float]) -> bool:
    return 0 < scale[0] <= scale[1] < math.inf


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
    numbers = draw_numbers(seed, epoch, ids, view)
    operations = _operations(augment, seed, epoch, ids, view)
    if lumas is None:
        lumas = np.full(len(ids), 127.5, dtype=np.float32)
    geometry = _window(augment, numbers, sizes) @ _affine(augment, numbers)
    for strengths in operations:
        geometry = geometry @ _move(augment.size, strengths)
    colour = _colour(augment, numbers, lumas, operations)
    return geometry.astype(np.float32), colour.astype(np.float32)


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


def noise(seed: int, ids: NDArray[np.int64], copy: int, count: int) -> NDArray[np.float32]:
    """Standard normal numbers `[n, count]`, each row a function of (seed, its id, copy) alone.

    Box, Muller, "A note on the generation of random normal deviates", 1958.
    """
    blocks = np.arange(-(-count // 4))
    numbers = uniform(philox((np.asarray(ids)[:, None], copy, blocks, _NOISE), seed))
    radius, angle = np.sqrt(-2 * np.log(numbers[..., :2])), 2 * np.pi * numbers[..., 2:]
    pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(len(ids), -1)[:, :count].astype(np.float32)


def draw_numbers(
    seed: int,
    epoch: int,
    ids: NDArray[np.int64],
    view: int | NDArray[np.int64],
    slots: Sequence[str] = _SLOTS,
    block: int = 0,
) -> Draws:
    """Uniform numbers in (0, 1), one array `[n]` a slot. block: the first of those of the generator."""
    blocks = block + np.arange(-(-len(slots) // 4))
    words = philox((np.asarray(ids)[:, None], epoch, np.reshape(view, (-1, 1)), blocks), seed)
    return dict(zip(slots, uniform(words).reshape(len(ids), 4 * len(blocks)).T, strict=False))


def _operations(
    augment: Augment, seed: int, epoch: int, ids: NDArray[np.int64], view: int | NDArray[np.int64]
) -> list[Draws]:
    """What RandAugment does, one operation after another: how strongly each kind, `[n]`, 0 for all but one.

    All kinds are as likely, and so are both signs.
    """
    slots = [str(place) for place in range(augment.randaugment)]
    numbers = draw_numbers(seed, epoch, ids, view, slots, _OPERATION_BLOCK) if slots else {}
    found = []
    for number in numbers.values():
        chosen, negative = np.divmod(np.floor(number * 2 * len(_OPERATIONS)), 2)
        signed = (1 - 2 * negative) * augment.magnitude / 30
        kinds = enumerate(_OPERATIONS.items())
        found.append({name: (chosen == kind) * signed * most for kind, (name, most) in kinds})
    return found


def _move(size: int, strengths: Draws) -> Matrices:
    """An operation's output pixel -> its input's, as in torchvision: shear from the corner, whole pixels."""
    cos, sin = np.cos(strengths["rotation"]), np.sin(strengths["rotation"])
    matrices = np.zeros((len(cos), 3, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = cos
    matrices[:, 0, 1] = strengths["shear x"] - sin
    matrices[:, 1, 0] = strengths["shear y"] + sin
    matrices[:, 0, 2] = size / 2 * (1 - cos + sin) - np.trunc(strengths["translate x"] * size)
    matrices[:, 1, 2] = size / 2 * (1 - cos - sin) - np.trunc(strengths["translate y"] * size)
    matrices[:, 2, 2] = 1
    return matrices


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


def _colour(
    augment: Augment, numbers: Draws, lumas: NDArray[np.float32], operations: list[Draws]
) -> Matrices:
    """Brightness, contrast, saturation, hue, operations, /255, mean and std as one matrix; `[n, 3, 4]`."""
    brightness = _between(numbers["brightness"], 1 - augment.brightness, 1 + augment.brightness)
    contrast = _between(numbers["contrast"], 1 - augment.contrast, 1 + augment.contrast)
    saturation = _between(numbers["saturation"], 1 - augment.saturation, 1 + augment.saturation)
    turn = _between(numbers["hue"], -augment.hue, augment.hue) * 2 * np.pi
    linear = (brightness * contrast)[:, None, None] * (_turn_hue(turn) @ _saturate(saturation))
    pivot = (1 - contrast) * brightness * lumas  # grey passes saturation and hue unchanged
    luma = brightness * lumas  # which contrast, saturation and hue leave as it is
    for strengths in operations:
        bright, contrast = 1 + strengths["brightness"], 1 + strengths["contrast"]
        linear = (bright * contrast)[:, None, None] * (_saturate(1 + strengths["saturation"]) @ linear)
        luma = bright * luma
        pivot = bright * contrast * pivot + (1 - contrast) * luma
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
