"""The breeds, and the brushes that paint a dog: one part after another with a soft mask of its outline.

Before it: nothing. After it: `dogs` composes a picture. A part is lit from its outline's own bulge, and torn
at the rim along the grain of the coat.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFilter

Array = NDArray[np.float32]
Points = NDArray[np.float64]
Box = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Breed:
    """What makes a breed. Numbers are proportions, 1 is average; words are keys of the tables below."""

    name: str
    coat: str
    mark: str
    pattern: str
    marking: str
    texture: str
    ears: str
    ear: float
    skull: float
    muzzle: float
    jowl: float
    eyes: float
    girth: float
    body: float
    legs: float
    tail: str


# fmt: off
BREEDS: Final = (
    #     name                    coat       mark       pattern    marking    texture   ears      ear   skull
    # muzzle  jowl  eyes  girth  body  legs  tail
    Breed("Marsh Pointer",        "#f1ebe0", "#6b3d22", "spots",   "hood",    "smooth", "drop",   1.0,  0.95,  1.3,    0.9,  0.95, 0.9,   1.1,  1.2,  "whip"),
    Breed("Copper Fenhound",      "#a8562a", "#8c4420", "solid",   "none",    "smooth", "long",   1.1,  0.9,   1.2,    0.9,  0.9,  0.9,   1.1,  1.1,  "whip"),
    Breed("Long Burrower",        "#7a3f22", "#5e2f19", "solid",   "none",    "smooth", "long",   1.0,  0.85,  1.3,    0.8,  0.9,  0.9,   1.5,  0.4,  "whip"),
    Breed("Snowdrift Spitz",      "#f7f3ec", "#fdfaf5", "solid",   "none",    "long",   "prick",  0.8,  1.0,   0.8,    0.8,  0.95, 1.1,   0.9,  0.9,  "plume"),
    Breed("Amber Foxling",        "#d08a45", "#f6e9d4", "solid",   "urajiro", "smooth", "prick",  0.8,  1.05,  0.8,    0.9,  1.0,  1.0,   0.9,  0.9,  "curl"),
    Breed("Rust Warrener",        "#c47c3e", "#f0dcbc", "solid",   "urajiro", "smooth", "prick",  1.05, 0.95,  1.15,   0.85, 0.95, 0.9,   1.1,  1.15, "sabre"),
    Breed("Harbour Terrier",      "#77787c", "#b9b6ae", "solid",   "urajiro", "wiry",   "button", 0.9,  0.9,   0.9,    1.1,  0.95, 0.9,   0.8,  0.8,  "stub"),
    Breed("Pepper Grizzler",      "#64656a", "#bfbdb6", "solid",   "urajiro", "wiry",   "prick",  0.7,  0.95,  1.05,   1.15, 0.95, 1.0,   0.9,  0.95, "stub"),
    Breed("Black Alder Sheepdog", "#2a2a2e", "#f3efe8", "solid",   "blaze",   "long",   "button", 0.9,  1.0,   1.0,    0.9,  1.0,  1.0,   1.0,  1.0,  "plume"),
    Breed("Fawn Batling",         "#d9b184", "#33291f", "solid",   "mask",    "smooth", "bat",    1.0,  1.05,  0.4,    1.2,  1.3,  1.1,   0.8,  0.7,  "stub"),
    Breed("Patchwork Beaglet",    "#f4eee3", "#b06a34", "patches", "hood",    "smooth", "drop",   1.1,  0.95,  1.0,    1.0,  1.0,  1.0,   1.0,  0.8,  "sabre"),
    Breed("Blue Merle Drover",    "#9aa3ae", "#3f444e", "merle",   "none",    "long",   "drop",   0.8,  1.0,   1.0,    0.9,  1.0,  1.0,   1.0,  0.9,  "stub"),
    Breed("Barrel Bulldog",       "#c9a27a", "#f3ebdd", "solid",   "blaze",   "smooth", "rose",   0.9,  1.15,  0.4,    1.5,  1.3,  1.3,   0.9,  0.7,  "stub"),
    Breed("Curly Reedwater",      "#5d3a28", "#4c2e20", "solid",   "none",    "curly",  "long",   0.9,  0.95,  1.0,    0.9,  0.95, 1.0,   1.0,  1.1,  "whip"),
    Breed("Coal Ratter",          "#27262a", "#b8733a", "solid",   "points",  "smooth", "prick",  1.0,  0.85,  1.0,    0.8,  0.9,  0.8,   0.9,  1.0,  "whip"),
    Breed("Saddle Mountain Dog",  "#c48a4e", "#2c2826", "solid",   "saddle",  "long",   "prick",  1.0,  0.95,  1.2,    0.9,  0.9,  1.0,   1.2,  1.1,  "plume"),
    Breed("Tiger Mastiff",        "#a9774a", "#3c2819", "brindle", "mask",    "smooth", "drop",   0.8,  1.15,  0.8,    1.4,  1.1,  1.3,   1.1,  1.1,  "sabre"),
    Breed("Dotted Coachdog",      "#f7f5f0", "#232227", "spots",   "none",    "smooth", "drop",   0.9,  0.9,   1.1,    0.9,  0.9,  0.9,   1.0,  1.2,  "whip"),
    Breed("Apricot Curlet",       "#e0ab72", "#e7b985", "solid",   "none",    "curly",  "drop",   1.0,  0.9,   0.8,    0.8,  1.0,  0.8,   0.8,  0.9,  "plume"),
    Breed("Silver Sledder",       "#80868f", "#f4f4f2", "solid",   "urajiro", "long",   "prick",  0.9,  1.0,   1.1,    0.9,  0.9,  1.0,   1.1,  1.1,  "curl"),
    Breed("Wheaten Brushhound",   "#d8b67f", "#e6cfa5", "solid",   "none",    "wiry",   "drop",   0.8,  0.95,  1.1,    1.1,  1.0,  0.9,   1.0,  1.2,  "sabre"),
    Breed("Piebald Butterfly",    "#f6f1e8", "#9c5a2c", "patches", "hood",    "long",   "bat",    1.1,  0.85,  0.8,    0.7,  1.1,  0.8,   0.8,  0.7,  "plume"),
    Breed("Slate Courser",        "#7c7f88", "#e9e6e0", "solid",   "blaze",   "smooth", "rose",   0.8,  0.8,   1.5,    0.7,  0.85, 0.75,  1.2,  1.4,  "whip"),
    Breed("Tawny Brindlebolt",    "#c08a55", "#59371f", "brindle", "none",    "smooth", "rose",   0.9,  0.85,  1.3,    0.8,  0.9,  0.8,   1.1,  1.3,  "whip"),
    Breed("Old Cottage Shag",     "#8d949c", "#f3f0ea", "patches", "blaze",   "long",   "drop",   0.8,  1.15,  0.9,    1.1,  1.0,  1.2,   1.0,  1.0,  "stub"),
    Breed("Liver Merle Curl",     "#b08a72", "#5a3526", "merle",   "none",    "curly",  "long",   1.0,  1.0,   1.1,    1.0,  1.0,  1.0,   1.0,  1.0,  "sabre"),
)

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

# Outlines of a right ear about its root, in half heads: control points, a point given twice makes a sharper
# corner.
EARS: Final = {
    "prick":  ((-0.30, 0.25), (-0.26, -0.25), (-0.02, -0.95), (0.02, -0.98), (0.30, -0.35), (0.40, 0.30)),
    "bat":    ((-0.34, 0.25), (-0.42, -0.50), (-0.15, -1.20), (0.22, -1.25), (0.50, -0.60), (0.42, 0.30)),
    "button": ((-0.36, 0.10), (-0.28, -0.34), (0.10, -0.52), (0.44, -0.30), (0.34, 0.30), (0.30, 0.42), (0.02, 0.10)),
    "rose":   ((-0.30, 0.10), (-0.16, -0.30), (0.28, -0.44), (0.74, -0.20), (0.76, -0.10), (0.38, 0.10), (0.10, 0.25)),
    "drop":   ((-0.28, 0.00), (0.00, -0.34), (0.44, -0.14), (0.62, 0.50), (0.46, 1.02), (0.22, 1.02), (0.04, 0.45)),
    "long":   ((-0.28, 0.00), (0.02, -0.30), (0.44, -0.05), (0.66, 0.80), (0.62, 1.60), (0.22, 1.66), (0.10, 0.70)),
}
UPRIGHT: Final = frozenset({"prick", "bat"})

# The joints of a tail from its root: x, y and half width, in units of the body.
TAILS: Final = {
    "curl":  ((0.05, 0.05, 0.09), (-0.22, -0.16, 0.11), (-0.24, -0.44, 0.11), (0.00, -0.54, 0.10), (0.14, -0.38, 0.09), (0.04, -0.28, 0.06)),
    "whip":  ((0.05, 0.00, 0.07), (-0.22, 0.02, 0.05), (-0.44, -0.12, 0.035), (-0.62, -0.34, 0.02)),
    "plume": ((0.05, 0.00, 0.09), (-0.20, -0.14, 0.15), (-0.42, -0.42, 0.19), (-0.34, -0.74, 0.08)),
    "sabre": ((0.05, 0.00, 0.09), (-0.20, 0.14, 0.08), (-0.42, 0.22, 0.07), (-0.64, 0.14, 0.04)),
    "stub":  ((0.05, 0.05, 0.09), (-0.08, -0.06, 0.09), (-0.14, -0.12, 0.06)),
}

# How far parts of the dog take over the raggedness of its coat; the others do so wholly.
RAGGED: Final = {"muzzle": 0.4, "paw": 0.5, "ear": 0.6, "leg": 0.7, "skull": 0.8}

# How far the rim of a coat is torn, how strongly its grain shows; and the grain: wave lengths across and
# along, degrees.
COATS: Final = {
    "smooth": (0.10, 0.030, ((1.6, 6.0, 12.0),)),
    "long":   (0.75, 0.075, ((2.2, 16.0, 10.0), (2.2, 14.0, -14.0))),
    "wiry":   (0.60, 0.085, ((1.6, 7.0, 38.0), (1.6, 7.0, -32.0))),
    "curly":  (0.55, 0.110, ((5.0, 5.0, 0.0),)),
}
# fmt: on
HEAD: Final = 0.36  # half the width of an average head, in units of the body


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


@dataclass(frozen=True, slots=True)
class Finish:
    """How a part is painted: brightness, bulge, torn rim, strength of the hair. flat: no rim, no shadow."""

    dim: float = 1.0
    relief: float = 0.75
    tear: float = 0.0
    hair: float = 0.0
    flat: bool = False


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
        tear, hair, _ = COATS[self.breed.texture]
        paint(self, outlines, colour, Finish(dim, 0.75, tear * RAGGED.get(part, 1.0), hair))

    def marking(self, part: str, outline: Points, within: Points | None = None) -> None:
        """Paint a part that exists only where the breed's second colour does."""
        tear, hair, _ = COATS[self.breed.texture]
        if part in MARKINGS[self.breed.marking]:
            paint(self, (outline,), self.mark, Finish(1.0, 0.0, max(tear, 0.3), hair, flat=True), within)

    def enamel(self, outline: Points, colour: str, relief: float = 0.0) -> None:
        """Paint something smooth: an eye, the nose, the tongue."""
        paint(self, (outline,), shade_of(colour), Finish(1.0, relief, flat=relief == 0))


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
def white() -> Array:
    """White noise `[1024, 1024]`, the same for every picture, from which each takes another window."""
    return np.random.default_rng(7).standard_normal((1024, 1024), dtype=np.float32)


@functools.lru_cache
def grain(texture: str) -> Array:
    """The hair of a coat: periodic noise `[1024, 1024]`, mean 0, deviation 1, drawn out along the grain."""
    spectrum = np.fft.rfft2(white())
    down, across = np.meshgrid(np.fft.fftfreq(1024), np.fft.rfftfreq(1024), indexing="ij")
    power = np.zeros_like(down)
    for width, length, degrees in COATS[texture][2]:
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        u, v = (across * cos + down * sin) * width, (down * cos - across * sin) * length
        power += np.exp(-12 * (u * u + v * v)) * (u * u + v * v if width == length else 1)
    hair: Array = np.fft.irfft2(spectrum * power).astype(np.float32)
    return np.asarray((hair - hair.mean()) / hair.std())


def bounds(outlines: Sequence[Points], shape: tuple[int, ...], margin: float) -> Box | None:
    """The rows and columns of the picture that the outlines touch, or None when they lie outside."""
    points = np.concatenate(outlines)
    low = np.maximum(np.floor(points.min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(points.max(axis=0) + margin), shape[1::-1]).astype(int)
    if (high - low < 2).any():
        return None
    return slice(low[1], high[1]), slice(low[0], high[0])


def stencil(outlines: Sequence[Points], box: Box) -> Image.Image:
    """What the outlines enclose within `box`, drawn three times too large and averaged down."""
    rows, columns = box
    image = Image.new("L", ((columns.stop - columns.start) * 3, (rows.stop - rows.start) * 3))
    for outline in outlines:
        ImageDraw.Draw(image).polygon(
            ((outline - (columns.start, rows.start)) * 3).ravel().tolist(), fill=255
        )
    return image.reduce(3)


def levels(mask: Image.Image, soft: float = 0.0) -> Array:
    """A mask as numbers in 0..1; with `soft`, its rim slopes so many pixels to either side."""
    return np.asarray(mask.filter(ImageFilter.BoxBlur(soft)) if soft else mask, np.float32) / np.float32(255)


def torn(mask: Image.Image, hair: Array, reach: float) -> Array:
    """A mask whose rim is torn along the hair, at most `reach` pixels to either side."""
    if reach < 0.5:
        return levels(mask)
    steep = 1.8 * reach + 1
    sway = 0.24 * (steep - 1) * np.clip(hair, -2, 2)
    return np.clip((levels(mask, reach) - 0.5) * steep + 0.5 + sway, 0, 1)


def relief_of(mask: Image.Image, light: tuple[float, float]) -> Array:
    """How much the bulge of a mask faces the light, about -1..1: found small and soft, then drawn large."""
    small = mask.reduce(max(1, min(mask.size) // 24))
    radius = 0.16 * min(small.size)
    broad, narrow = (levels(small.filter(ImageFilter.GaussianBlur(part * radius))) for part in (1, 1 / 3))
    down, across = np.gradient(broad + 0.6 * narrow)
    facing = Image.fromarray(-radius * (across * light[0] + down * light[1]))
    return np.asarray(facing.resize(mask.size, Image.Resampling.BICUBIC))


def paint(
    easel: Easel, outlines: Sequence[Points], colour: Array, finish: Finish, within: Points | None = None
) -> None:
    """Paint what the outlines enclose, and only on `within`; a flat finish only on what is dog already."""
    extent = float(np.ptp(np.concatenate(outlines), axis=0).min())
    reach, soft = finish.tear * 0.062 * easel.unit, min(0.06 * easel.unit, 0.25 * extent)
    box = bounds(outlines, easel.dog.shape, 2 + max(reach, soft))
    if box is None:
        return
    mask, view, below = stencil(outlines, box), easel.pixels[:, *box], easel.dog[box]
    hair = window(grain(easel.breed.texture), easel.rng, below.shape)
    cover = torn(mask, hair, reach)
    if within is not None:
        cover = cover * levels(stencil((within,), box), 1)
    if finish.flat:
        cover = cover * below
    else:
        view *= 1 - 0.35 * levels(mask, soft) * below
    view += cover * (
        lit(easel, colour if colour.shape[1] == 1 else colour[:, *box], mask, hair, finish) - view
    )
    np.maximum(below, cover, out=below)


def lit(easel: Easel, colour: Array, mask: Image.Image, hair: Array, finish: Finish) -> Array:
    """A colour under the easel's light: hair, bulge, and a dark line along the rim."""
    tone = finish.dim * (1 + finish.hair * hair)
    if finish.relief == 0:
        return colour * tone
    facing = finish.relief * relief_of(mask, easel.light)
    tone *= (0.6 + 0.4 * levels(mask, 0.02 * easel.unit)) * (1 + 0.55 * facing)
    shine: Array = np.maximum(facing, 0) * (0.07 * finish.dim)
    return colour * tone + shine


def window(noise: Array, rng: Generator, shape: tuple[int, ...]) -> Array:
    """A piece `[H, W]` of a larger noise, from a random place."""
    top, left = rng.integers(0, (noise.shape[0] - shape[0], noise.shape[1] - shape[1]))
    return noise[top : top + shape[0], left : left + shape[1]]
