"""What lies around a dog: nine places, out of focus but for the ground near us.

Before it: `brushes`. After it: `dogs` paints a dog in front.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from greyhound.cache.demo.brushes import WHITE, Array, cloud, grain, levels, shade_of, window

# Colours of the sky above and below, far off, of the ground far and near; how rough the ground is; the colour
# of lights; whether it is indoors.
SCENES: Final = (
    ("#6fa8dc #dcebf2 #5f8a55 #86a650 #5d7f33", 0.22, "", False),  # meadow
    ("#3f5c38 #7d9a5c #2f4a2c #6b8046 #4c5f30", 0.20, "#d9e8a0", False),  # wood
    ("#7fb4e0 #e8f1f4 #3f86ab #e3cfa4 #cdb184", 0.08, "", False),  # beach
    ("#b9c9d8 #eef2f5 #7f929c #f2f5f8 #dce5ee", 0.05, "", False),  # snow
    ("#8c6a4c #d8b384 #7c4a2a #a8804e #7d5a36", 0.24, "#ffd28a", False),  # autumn
    ("#2c3350 #8a6a7c #262a3c #6f6a70 #55525a", 0.12, "#ffdca0", False),  # evening in town
    ("#d9d2c5 #cfc6b6 #8f7a68 #b98d5f #8f673f", 0.06, "", True),  # room
    ("#9db8b2 #a9c2bb #d8cfc0 #8c8f96 #6f7279", 0.10, "", True),  # hall
    ("#bdb4bb #cfc8cc #b6abb2 #d2cacd #b3a9ae", 0.02, "", True),  # studio
)


def backdrop(rng: Generator, shape: tuple[int, int], horizon: int) -> Array:
    """A place `[3, H, W]` out of focus, in focus on the ground near us."""
    (colours, rough, lights, indoors), (height, width) = SCENES[rng.integers(len(SCENES))], shape
    sky, haze, far, ground, near = (vary(rng, colour) for colour in colours.split())
    above = _ramp(sky, haze, horizon) * (1 + 0.05 * cloud(rng, (horizon, width), 90))
    below = _ramp(ground, near, height - horizon) * np.ones(width, np.float32)
    image = _to_image(np.concatenate([above, below], axis=1))
    (_furnish if indoors else _plant)(rng, image, horizon, far)
    if lights:
        _twinkle(rng, image, horizon, lights)
    small = image.reduce(2).filter(ImageFilter.GaussianBlur(rng.uniform(2, 7) / 2))
    planes = small.resize(image.size, Image.Resampling.BILINEAR).split()
    soft, place = np.stack([levels(plane) for plane in planes]), (height - horizon, width)
    blades = window(grain("long"), rng, place) + 0.8 * cloud(rng, place, 25)
    blades *= np.linspace(0.1, 0.9, place[0], dtype=np.float32)[:, None]
    soft[:, horizon:] *= 1 + rough * blades
    return soft


def _ramp(top: Array, bottom: Array, height: int) -> Array:
    return top + np.linspace(0, 1, height, dtype=np.float32)[:, None] * (bottom - top)


def vary(rng: Generator, colour: str, hue: float = 0.03, shade: float = 0.07) -> Array:
    """A colour `[3, 1, 1]` near the one named."""
    factor = rng.normal(1, hue, (3, 1, 1)) + rng.normal(0, shade)
    return np.clip(shade_of(colour) * factor, 0, 1).astype(np.float32)


def _ink(colour: Array, alpha: float = 1.0) -> tuple[int, ...]:
    return *(int(level) for level in np.clip(colour.ravel(), 0, 1) * 255), int(255 * alpha)


def _plant(rng: Generator, image: Image.Image, horizon: int, colour: Array) -> None:
    draw, width = ImageDraw.Draw(image, "RGBA"), image.width
    for depth in (1.0, 0.6):
        rough = cloud(rng, (2, width), 90)[0] + 0.5 * cloud(rng, (2, width), 25)[0]
        crest = horizon - horizon * depth * (0.3 + 0.16 * rough)
        line = [(0, horizon), *enumerate(crest.tolist()), (width, horizon)]
        draw.polygon(line, _ink(colour * (0.7 + 0.5 * depth), 0.85))


def _furnish(rng: Generator, image: Image.Image, horizon: int, colour: Array) -> None:
    draw, (width, height) = ImageDraw.Draw(image, "RGBA"), image.size
    for _ in range(rng.integers(1, 4)):
        left, right = np.array([0, rng.uniform(0.15, 0.45)]) * width + rng.uniform(-0.1, 0.9) * width
        top, bottom = horizon * rng.uniform(0.1, 0.7), horizon * rng.choice([1.0, 0.75])
        draw.rounded_rectangle((left, top, right, bottom), 6, _ink(colour * rng.uniform(0.6, 1.5), 0.9))
    draw.rectangle((0, horizon - 8, width, horizon), _ink(colour * 1.3))
    for x in np.linspace(-0.6, 1.6, 10) * width:
        draw.line((x, height, 0.3 * width + 0.4 * x, horizon), _ink(colour * 0.5, 0.25), 2)


def _twinkle(rng: Generator, image: Image.Image, horizon: int, colour: str) -> None:
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(rng.integers(12, 30)):
        x, y, radius = rng.uniform(0, image.width), rng.uniform(0, horizon), rng.uniform(4, 22)
        tint = _ink(vary(rng, colour), float(rng.uniform(0.15, 0.5)))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), tint, outline=tint, width=2)


def _to_image(pixels: Array) -> Image.Image:
    planes = (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])


def develop(rng: Generator, pixels: Array) -> Image.Image:
    """Light, lens and film: dapples, vignette, exposure, tint, highlights, noise, softness."""
    _, height, width = pixels.shape
    down, across = (np.linspace(-1, 1, side, dtype=np.float32) ** 2 for side in (height, width))
    gain = 1 + rng.uniform(0, 0.12) * cloud(rng, (height, width), 110)
    gain *= 1 - rng.uniform(0, 0.14) * (down[:, None] + across)
    warm, green, exposure = rng.normal(0, 0.05), rng.normal(0, 0.015), rng.lognormal(0.09, 0.12)
    tint = np.array([1 + warm, 1 + green, 1 - warm], np.float32).reshape(3, 1, 1)
    pixels = pixels * tint * (gain * exposure)
    pixels -= 0.12 * pixels * pixels * pixels
    pixels += rng.uniform(0.014, 0.032) * window(WHITE, rng, (height, width))
    return _to_image(pixels).filter(ImageFilter.BoxBlur(max(0.0, rng.uniform(-0.4, 0.4))))
