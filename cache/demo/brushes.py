"""The breeds, and the brushes that paint a dog: one part after another with a soft mask of its outline.

Before it: nothing. After it: `dogs` composes a picture. A part is lit from its outline's own bulge.
"""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFilter

Array = NDArray[np.float32]
Points = NDArray[np.float64]
Outlines = Sequence[Points]
Box = tuple[slice, slice]


Breed = namedtuple(
    "Breed", "name coat mark pattern marking texture ears tail ear skull muzzle jowl eyes girth body legs"
)
SIZES: Final = Breed._fields[8:]
"""Proportions of a breed; 1 is average."""
# The fields of a breed in order: words, and then numbers in per cent.
_STANDARDS: Final = """
Marsh Pointer        | #f1ebe0 #6b3d22 spots   hood    smooth drop   whip  | 100  95 130  90  95  90 110 120
Copper Fenhound      | #a8562a #8c4420 solid   none    smooth long   whip  | 110  90 120  90  90  90 110 110
Long Burrower        | #7a3f22 #5e2f19 solid   none    smooth long   whip  | 100  85 130  80  90  90 150  40
Snowdrift Spitz      | #f7f3ec #fdfaf5 solid   none    long   prick  plume |  80 100  80  80  95 110  90  90
Amber Foxling        | #d08a45 #f6e9d4 solid   urajiro smooth prick  curl  |  80 105  80  90 100 100  90  90
Rust Warrener        | #c47c3e #f0dcbc solid   urajiro smooth prick  sabre | 105  95 115  85  95  90 110 115
Harbour Terrier      | #77787c #b9b6ae solid   urajiro wiry   button stub  |  90  90  90 110  95  90  80  80
Pepper Grizzler      | #64656a #bfbdb6 solid   urajiro wiry   prick  stub  |  70  95 105 115  95 100  90  95
Black Alder Sheepdog | #2a2a2e #f3efe8 solid   blaze   long   button plume |  90 100 100  90 100 100 100 100
Fawn Batling         | #d9b184 #33291f solid   mask    smooth bat    stub  | 100 105  40 120 130 110  80  70
Patchwork Beaglet    | #f4eee3 #b06a34 patches hood    smooth drop   sabre | 110  95 100 100 100 100 100  80
Blue Merle Drover    | #9aa3ae #3f444e merle   none    long   drop   stub  |  80 100 100  90 100 100 100  90
Barrel Bulldog       | #c9a27a #f3ebdd solid   blaze   smooth rose   stub  |  90 115  40 150 130 130  90  70
Curly Reedwater      | #5d3a28 #4c2e20 solid   none    curly  long   whip  |  90  95 100  90  95 100 100 110
Coal Ratter          | #27262a #b8733a solid   points  smooth prick  whip  | 100  85 100  80  90  80  90 100
Saddle Mountain Dog  | #c48a4e #2c2826 solid   saddle  long   prick  plume | 100  95 120  90  90 100 120 110
Tiger Mastiff        | #a9774a #3c2819 brindle mask    smooth drop   sabre |  80 115  80 140 110 130 110 110
Dotted Coachdog      | #f7f5f0 #232227 spots   none    smooth drop   whip  |  90  90 110  90  90  90 100 120
Apricot Curlet       | #e0ab72 #e7b985 solid   none    curly  drop   plume | 100  90  80  80 100  80  80  90
Silver Sledder       | #80868f #f4f4f2 solid   urajiro long   prick  curl  |  90 100 110  90  90 100 110 110
Wheaten Brushhound   | #d8b67f #e6cfa5 solid   none    wiry   drop   sabre |  80  95 110 110 100  90 100 120
Piebald Butterfly    | #f6f1e8 #9c5a2c patches hood    long   bat    plume | 110  85  80  70 110  80  80  70
Slate Courser        | #7c7f88 #e9e6e0 solid   blaze   smooth rose   whip  |  80  80 150  70  85  75 120 140
Tawny Brindlebolt    | #c08a55 #59371f brindle none    smooth rose   whip  |  90  85 130  80  90  80 110 130
Old Cottage Shag     | #8d949c #f3f0ea patches blaze   long   drop   stub  |  80 115  90 110 100 120 100 100
Liver Merle Curl     | #b08a72 #5a3526 merle   none    curly  long   sabre | 100 100 110 100 100 100 100 100
"""


def _read(standard: str) -> Breed:
    name, words, numbers = standard.split("|")
    return Breed(name.strip(), *words.split(), *(int(number) / 100 for number in numbers.split()))


BREEDS: Final = tuple(map(_read, _STANDARDS.strip().splitlines()))
# Which parts of the dog wear the second colour.
MARKINGS: Final = {
    "none": frozenset[str](),
    "blaze": frozenset({"blaze", "muzzle", "chest", "paw"}),
    "hood": frozenset({"ear", "patch"}),
    "mask": frozenset({"muzzle", "ear"}),
    "points": frozenset({"muzzle", "beard", "brow", "chest", "paw", "shin"}),
    "saddle": frozenset({"saddle", "ear", "tail", "muzzle"}),
    "urajiro": frozenset({"muzzle", "beard", "cheek", "brow", "chest", "paw"}),
}

# How far parts of the dog take over the raggedness of its coat; the others do so wholly.
RAGGED: Final = {"muzzle": 0.4, "paw": 0.5, "ear": 0.6, "leg": 0.7, "skull": 0.8}

# White noise, the same for every picture, from which each takes another window.
WHITE: Final = np.random.default_rng(7).standard_normal((1024, 1024), dtype=np.float32)
# How far the rim of a coat is torn, how strongly its grain shows; wave lengths across and along, degrees.
COATS: Final = {
    "smooth": (0.10, 0.030, ((1.6, 6.0, 12.0),)),
    "long": (0.75, 0.075, ((2.2, 16.0, 10.0), (2.2, 14.0, -14.0))),
    "wiry": (0.60, 0.085, ((1.6, 7.0, 38.0), (1.6, 7.0, -32.0))),
    "curly": (0.55, 0.110, ((5.0, 5.0, 0.0),)),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a drawing's own units fall on the picture: turned, scaled, mirrored if `flip` is -1, moved."""

    x: float
    y: float
    scale: float
    turn: float = 0.0
    flip: float = 1.0

    def __call__(self, points: ArrayLike) -> Points:
        """Points `[n, 2]` in units, y downwards, as pixels."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        turned = np.asarray(points, np.float64) @ np.array([[cos, sin], [-sin, cos]])
        placed: Points = turned * np.array([self.scale * self.flip, self.scale]) + np.array([self.x, self.y])
        return placed

    def oval(self, x: float, y: float, across: float, down: float, turn: float = 0.0) -> Points:
        """The outline of an ellipse with these half axes, in pixels."""
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        return self(Frame(x, y, 1.0, turn)(np.stack([across * np.cos(angle), down * np.sin(angle)], axis=1)))

    def limb(self, *joints: tuple[float, float, float]) -> Points:
        """The outline of something long, in pixels, through joints (x, y, half width), with round ends."""
        line, half = np.array(joints)[:, :2], np.array(joints)[:, 2:]
        along = np.gradient(line, axis=0)
        along *= half / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-6)
        across = along[:, ::-1] * np.array([-1.15, 1.15])
        start, end = line[:1] - 0.7 * along[:1], line[-1:] + 0.7 * along[-1:]
        return self(smooth(np.concatenate([start, line + across, end, (line - across)[::-1]])))

    def inside(self, x: float, y: float, scale: float = 1.0, turn: float = 0.0) -> Frame:
        """A frame within this one: its origin, its relative scale and its own turn."""
        ((left, top),) = self([(x, y)])
        return replace(self, x=float(left), y=float(top), scale=self.scale * scale, turn=self.turn + turn)


@dataclass(slots=True)
class Easel:
    """What one picture is painted with. `pixels` `[3, H, W]` in 0..1; `dog` `[H, W]`: the share of dog."""

    pixels: Array
    dog: Array
    breed: Breed
    coat: Array
    mark: Array
    light: tuple[float, float]
    unit: float
    rng: Generator

    def near(self, mean: float, spread: float) -> float:
        """A number near `mean`: what makes one picture differ from the next."""
        return mean + spread * float(self.rng.uniform(-1, 1))

    def fur(self, part: str, *outlines: Points, dim: float = 1.0) -> None:
        """Paint a part of the dog in the colour that its breed wears there."""
        colour = self.mark if part in MARKINGS[self.breed.marking] else self.coat
        tear = COATS[self.breed.texture][0] * RAGGED.get(part, 1.0)
        self._paint(outlines, colour, 0.75, dim, tear, None)

    def marking(self, part: str, outline: Points, within: Points | None = None) -> None:
        """Paint a part that exists only where the breed's second colour does."""
        if part in MARKINGS[self.breed.marking]:
            tear = max(COATS[self.breed.texture][0], 0.3)
            self._paint((outline,), self.mark, 0.0, 1.0, tear, within)

    def enamel(self, outline: Points, colour: str | Array, relief: float = 0.0) -> None:
        """Paint something smooth: an eye, the nose, the tongue."""
        tint = shade_of(colour) if isinstance(colour, str) else colour
        self._paint((outline,), tint, relief, 1.0, 0.0, None)

    def shadow(self, outline: Points) -> None:
        """Darken the ground."""
        if box := bounds((outline,), self.dog.shape, 0.2 * self.unit):
            self.pixels[:, *box] *= 1 - 0.6 * levels(stencil((outline,), box), 0.09 * self.unit)

    def _paint(
        self, outlines: Outlines, colour: Array, relief: float, dim: float, tear: float, on: Points | None
    ) -> None:
        """Paint what the outlines enclose, only `on` another one; without `relief` only on the dog, unlit."""
        extent = float(np.ptp(np.concatenate(outlines), axis=0).min())
        reach, soft = tear * 0.062 * self.unit, min(0.06 * self.unit, 0.25 * extent)
        if not (box := bounds(outlines, self.dog.shape, 2 + max(reach, soft))):
            return
        mask, view, below = stencil(outlines, box), self.pixels[:, *box], self.dog[box]
        grown = window(grain(self.breed.texture), self.rng, below.shape)
        cover = levels(mask)
        if reach >= 0.5:  # the rim is torn along the hair, at most `reach` pixels to either side
            steep = 1.8 * reach + 1
            sway = 0.24 * (steep - 1) * np.clip(grown, -2, 2)
            cover = np.clip((levels(mask, reach) - 0.5) * steep + 0.5 + sway, 0, 1)
        if on is not None:
            cover = cover * levels(stencil((on,), box), 1)
        tone = dim * (1 + (COATS[self.breed.texture][1] if tear else 0.0) * grown)
        shine: Array | float = 0.0
        if relief == 0:
            cover = cover * below
        else:
            view *= 1 - 0.35 * levels(mask, soft) * below
            facing = relief * relief_of(mask, self.light)
            tone *= (0.6 + 0.4 * levels(mask, 0.02 * self.unit)) * (1 + 0.55 * facing)
            shine = np.maximum(facing, 0) * (0.07 * dim)
        lit = (colour if colour.shape[1] == 1 else colour[:, *box]) * tone + shine
        view += cover * (lit - view)
        np.maximum(below, cover, out=below)


def smooth(corners: ArrayLike) -> Points:
    """A closed outline through which Chaikin's corner cutting has gone three times: a quadratic B-spline."""
    points = np.asarray(corners, np.float64)
    for _ in range(3):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], axis=1).reshape(-1, 2)
    return points


def shade_of(text: str) -> Array:
    """A colour in hexadecimal digits as numbers `[3, 1, 1]` in 0..1."""
    return np.asarray(ImageColor.getrgb(text), np.float32).reshape(3, 1, 1) / np.float32(255)


def cloud(rng: Generator, shape: tuple[int, int], cell: float) -> Array:
    """Smooth noise `[H, W]`, mean 0, whose features are about `cell` pixels across."""
    grid = rng.standard_normal([int(side / cell) + 3 for side in shape], dtype=np.float32)
    return np.asarray(Image.fromarray(grid * 1.3).resize(shape[::-1], Image.Resampling.BICUBIC))


@functools.lru_cache
def grain(texture: str) -> Array:
    """The hair of a coat: periodic noise `[1024, 1024]`, mean 0, deviation 1, drawn out along the grain."""
    spectrum = np.fft.rfft2(WHITE)
    down, across = np.meshgrid(np.fft.fftfreq(1024), np.fft.rfftfreq(1024), indexing="ij")
    power = np.zeros_like(down)
    for width, length, degrees in COATS[texture][2]:
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        u, v = (across * cos + down * sin) * width, (down * cos - across * sin) * length
        power += np.exp(-12 * (u * u + v * v)) * (u * u + v * v if width == length else 1)
    hair: Array = np.fft.irfft2(spectrum * power).astype(np.float32)
    return np.asarray((hair - hair.mean()) / hair.std())


def bounds(outlines: Outlines, shape: tuple[int, ...], margin: float) -> Box | None:
    """The rows and columns of the picture that the outlines touch, or None when they lie outside."""
    points = np.concatenate(outlines)
    low = np.maximum(np.floor(points.min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(points.max(axis=0) + margin), shape[1::-1]).astype(int)
    seen = (high - low >= 2).all()
    return (slice(low[1], high[1]), slice(low[0], high[0])) if seen else None


def stencil(outlines: Outlines, box: Box) -> Image.Image:
    """What the outlines enclose within `box`, drawn three times too large and averaged down."""
    rows, columns = box
    image = Image.new("L", ((columns.stop - columns.start) * 3, (rows.stop - rows.start) * 3))
    for outline in outlines:
        corners = (outline - (columns.start, rows.start)) * 3
        ImageDraw.Draw(image).polygon(corners.ravel().tolist(), fill=255)
    return image.reduce(3)


def levels(mask: Image.Image, soft: float = 0.0) -> Array:
    """A mask as numbers in 0..1; with `soft`, its rim slopes so many pixels to either side."""
    return np.asarray(mask.filter(ImageFilter.BoxBlur(soft)) if soft else mask, np.float32) / np.float32(255)


def relief_of(mask: Image.Image, light: tuple[float, float]) -> Array:
    """How much the bulge of a mask faces the light, about -1..1: found small and soft, then drawn large."""
    small = mask.reduce(max(1, min(mask.size) // 24))
    radius = 0.16 * min(small.size)
    broad, narrow = (levels(small.filter(ImageFilter.GaussianBlur(part * radius))) for part in (1, 1 / 3))
    down, across = np.gradient(broad + 0.6 * narrow)
    facing = Image.fromarray(-radius * (across * light[0] + down * light[1]))
    return np.asarray(facing.resize(mask.size, Image.Resampling.BICUBIC))


def window(noise: Array, rng: Generator, shape: tuple[int, ...]) -> Array:
    """A piece `[H, W]` of a larger noise, from a random place."""
    top, left = rng.integers(0, (noise.shape[0] - shape[0], noise.shape[1] - shape[1]))
    return noise[top : top + shape[0], left : left + shape[1]]
