"""Draw cartoon dogs whose breeds differ in small things. Nobody needs to read this to use Greyhound.

Before it: the breeds and `brushes`. After it: `faults` writes the drawings to files. Every drawing is a pure
function of (seed, breed, number), however many breeds or images are asked for.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.random import Generator
from PIL import Image

from greyhound.cache.demo.brushes import SIZES, Array, Breed, Easel, Frame, Points, cloud, shade_of, smooth
from greyhound.cache.demo.scenes import backdrop, develop, vary


def _places(text: str) -> Points:
    return np.array([place.split(",") for place in text.split()], np.float64)


# Outlines of a right ear about its root, in half heads.
EARS: Final = {
    "prick": _places("-.3,.25 -.26,-.25 -.02,-.95 .02,-.98 .3,-.35 .4,.3"),
    "bat": _places("-.34,.25 -.42,-.5 -.15,-1.2 .22,-1.25 .5,-.6 .42,.3"),
    "button": _places("-.36,.1 -.28,-.34 .1,-.52 .44,-.3 .34,.3 .3,.42 .02,.1"),
    "rose": _places("-.3,.1 -.16,-.3 .28,-.44 .74,-.2 .76,-.1 .38,.1 .1,.25"),
    "drop": _places("-.28,0 0,-.34 .44,-.14 .62,.5 .46,1.02 .22,1.02 .04,.45"),
    "long": _places("-.28,0 .02,-.3 .44,-.05 .66,.8 .62,1.6 .22,1.66 .1,.7"),
}
UPRIGHT: Final = frozenset({"prick", "bat"})
# The joints of a tail from its root: x, y and half width, in units of the body.
TAILS: Final = {
    "curl": _places(".05,.05,.09 -.22,-.16,.11 -.24,-.44,.11 0,-.54,.1 .14,-.38,.09 .04,-.28,.06"),
    "whip": _places(".05,0,.07 -.22,.02,.05 -.44,-.12,.035 -.62,-.34,.02"),
    "plume": _places(".05,0,.09 -.2,-.14,.15 -.42,-.42,.19 -.34,-.74,.08"),
    "sabre": _places(".05,0,.09 -.2,.14,.08 -.42,.22,.07 -.64,.14,.04"),
    "stub": _places(".05,.05,.09 -.08,-.06,.09 -.14,-.12,.06"),
}


def draw_dog(breed: Breed, number: int, seed: int) -> tuple[Image.Image, Image.Image]:
    """Picture `number` of a breed, RGB, sides of 330 to 500 pixels: a pure function of its arguments.

    And where in it the dog is, as mode L of the same size: 255, or 0.
    """
    rng = np.random.default_rng([seed, zlib.crc32(breed.name.encode()), number])
    dog = breed._replace(**{name: getattr(breed, name) * rng.normal(1, 0.035) for name in SIZES})
    width, height = (int(side) for side in rng.integers(330, 501, 2))
    pose, head = POSES[rng.integers(len(POSES))]
    frame = compose(dog, rng, (width, height), *head(dog))
    horizon = int(np.clip(frame.y * rng.uniform(0.62, 0.85), 0.4 * height, 0.85 * height))
    shape = height, width
    pixels = backdrop(rng, shape, horizon)
    cloth, mark = (vary(rng, colour, 0.02, 0.05) for colour in (dog.coat, dog.mark))
    cloth = cloth * (1 + 0.04 * cloud(rng, shape, 0.25 * frame.scale))
    coat = cloth + np.clip(pattern(dog.pattern, rng, shape, frame.scale), 0, 1) * (mark - cloth)
    angle = rng.uniform(-2.6, -0.5)
    light = float(np.cos(angle)), float(np.sin(angle))
    easel = Easel(pixels, np.zeros_like(pixels[0]), dog, coat, mark, light, frame.scale, rng)
    pose(easel, frame)
    _draw_head(easel, frame.inside(*head(dog), 0.36))  # half the width of an average head
    return develop(rng, easel.pixels), Image.fromarray((easel.dog >= 0.5).astype(np.uint8) * 255)


def compose(dog: Breed, rng: Generator, size: tuple[int, int], x: float, y: float) -> Frame:
    """Where the dog with its head at (x, y) goes: a portrait, or all of it in view."""
    width, height = size
    flip = float(rng.choice([-1, 1]))
    if rng.random() < 0.45:
        scale = min(size) * rng.uniform(0.62, 0.86)
        left, top = width * rng.uniform(0.44, 0.56), height * rng.uniform(0.42, 0.5)
        return Frame(left - flip * scale * x, top - scale * y, scale, 0.0, flip)
    tail, nose, crown = -0.5 * dog.body - 0.45, x + 0.5, y - 0.5 - 0.3 * (dog.ears in UPRIGHT)
    scale = min(0.96 * width / (nose - tail), -0.92 * height / crown) * rng.uniform(0.85, 1)
    left = width / 2 - flip * scale * (tail + nose) / 2
    return Frame(left, height * rng.uniform(0.9, 0.96), scale, rng.normal(0, 0.035), flip)


@dataclass(frozen=True, slots=True)
class Face:
    """A head's units (half its width), seen from a side: a point's depth `z` moves it on the picture."""

    frame: Frame
    yaw: float
    nod: float

    def at(self, x: float, y: float, z: float) -> tuple[float, float]:
        """The place of a point of the head, in the head's own flat units."""
        return float(x * np.cos(self.yaw) + z * np.sin(self.yaw)), float(y + z * np.sin(self.nod))

    def oval(self, x: float, y: float, z: float, across: float, down: float, turn: float = 0.0) -> Points:
        """An ellipse about a point of the head, in pixels."""
        return self.frame.oval(*self.at(x, y, z), across, down, turn)


def _draw_head(easel: Easel, frame: Frame) -> None:
    """The head, a little turned; hanging ears lie over the cheeks, upright ones behind the skull."""
    tilted = replace(frame, turn=frame.turn + easel.near(0, 0.16))
    face = Face(tilted, easel.near(0.25, 0.45), easel.near(0.2, 0.12))
    upright = easel.breed.ears in UPRIGHT
    for draw in (_draw_ears, _draw_skull) if upright else (_draw_skull, _draw_ears):
        draw(easel, face)
    _draw_muzzle(easel, face, 0.2 + 0.16 * easel.breed.muzzle, 0.75 + 0.6 * easel.breed.muzzle)
    for side in (-1, 1):
        x, y = face.at(side * 0.41 * easel.breed.eyes, -0.08, 0.78)
        _draw_eye(easel, tilted.inside(x, y, 0.145), side)


def _draw_ears(easel: Easel, face: Face) -> None:
    """Both ears at their roots; upright ones show their inside."""
    upright = easel.breed.ears in UPRIGHT
    x, y = (0.52, -0.62) if upright else (0.66, -0.5)
    for side in (-1.0, 1.0):
        place = face.at(side * x * easel.breed.skull, y, -0.1)
        root = face.frame.inside(*place, easel.breed.ear, side * easel.near(0.1, 0.1))
        shape = smooth(EARS[easel.breed.ears]) * np.array([side, 1])
        easel.fur("ear", root(shape), dim=0.93)
        if upright:
            easel.enamel(root(shape * 0.6), 0.5 * shade_of("#d99a8f") + 0.3 * easel.mark, -0.4)


def _draw_skull(easel: Easel, face: Face) -> None:
    wide, eyes = easel.breed.skull, easel.breed.eyes
    half = ((0.0, -0.98), (0.62, -0.92), (0.98, -0.35), (1.02, 0.25), (0.72, 0.78), (0.3, 0.98), (0.0, 1.0))
    right = np.array(half) * np.array([wide, 1])
    skull = face.frame(smooth(np.concatenate([right, right[-2:0:-1] * np.array([-1, 1])])))
    easel.fur("skull", skull)
    for side in (-1, 1):
        easel.marking("cheek", face.oval(0.62 * side * wide, 0.5, 0.5, 0.42, 0.5), skull)
    easel.marking("patch", face.oval(0.42 * eyes, easel.near(-0.05, 0.05), 0.75, 0.38, 0.48), skull)
    crown, brow, nose = face.at(0, -1.0, 0.3), face.at(0, -0.3, 0.8), face.at(0, 0.4, 0.9)
    easel.marking("blaze", face.frame.limb((*crown, 0.16), (*brow, 0.12), (*nose, 0.34)), skull)


def _draw_muzzle(easel: Easel, face: Face, low: float, deep: float) -> None:
    """Mouth, bridge, jowls, beard, nose. The tip is `low` below the head's middle, `deep` before it."""
    jowl, drop = easel.breed.jowl, float(easel.rng.choice([0.0, 0.0, 0.14, 0.2]))
    mouth = face.frame.inside(*face.at(0, low + 0.34, deep - 0.22))
    easel.fur("muzzle", mouth.oval(0, drop, 0.26 * jowl, 0.2 + drop / 2))
    if drop:
        easel.enamel(mouth.oval(0, drop / 2, 0.2 * jowl, 0.12 + drop / 2), "#4a1c1e", 0.75)
        easel.enamel(mouth.oval(0.03, drop + 0.1, 0.12 * jowl, 0.16 + drop / 2), "#e2818a", 0.75)
    root, middle = face.at(0, 0.12, 0.7), face.at(0, low - 0.02, deep / 2 + 0.35)
    tip = face.at(0, low + 0.08, deep - 0.1)
    easel.fur("muzzle", face.frame.limb((*root, 0.3 * jowl), (*middle, 0.33 * jowl), (*tip, 0.3 * jowl)))
    for side in (-jowl, jowl):
        size = 0.26 * jowl, 0.2 * jowl**0.5
        easel.fur("muzzle", face.oval(0.19 * side, low + 0.2, deep - 0.12, *size, 0.3 * side))
    nose = face.frame.inside(*face.at(0, low, deep), 0.17 + 0.05 * jowl)
    half = ((1, -0.6), (1.15, 0.0), (0.25, 0.9))
    easel.enamel(nose.limb((0, 0.4, 0.07), (0, 1.6, 0.07)), "#2b1d1b")
    easel.enamel(nose(smooth([*half, *((-x, y) for x, y in half[::-1])])), "#241d1f", 0.75)
    easel.enamel(nose.oval(easel.light[0] * 0.3, -0.32, 0.4, 0.14), "#a79fa6")
    if easel.breed.texture == "wiry":
        for side in (-1, 1):
            easel.fur("beard", face.oval(0.24 * side, low + 0.42, deep - 0.15, 0.24, 0.4, -0.25 * side))
            easel.fur("brow", face.oval(0.4 * side * easel.breed.eyes, -0.3, 0.85, 0.27, 0.13, 0.35 * side))


def _draw_eye(easel: Easel, frame: Frame, side: int) -> None:
    shine = easel.light[0] * frame.flip
    easel.marking("brow", frame.oval(side * 0.1, -2.0, 0.8, 0.6, side * 0.4))
    easel.enamel(frame.oval(0, 0.02, 1.2, 1.12), "#1c1414", 0.75)
    easel.enamel(frame.oval(0, 0.05, 0.96, 0.94), "#6b3f1e", -0.8)
    easel.enamel(frame.oval(0.08, 0.05, 0.62, 0.64), "#0b0808")
    easel.enamel(frame.oval(shine * 0.4, -0.36, 0.28, 0.26), "#ffffff")
    easel.enamel(frame.oval(-shine * 0.3, 0.42, 0.14, 0.1), "#9a8a7c")


def _draw_tail(easel: Easel, frame: Frame) -> None:
    wagging = replace(frame, turn=frame.turn + easel.near(0, 0.3))
    easel.fur("tail", wagging.limb(*TAILS[easel.breed.tail]))


def _draw_foreleg(easel: Easel, frame: Frame, x: float, top: float, foot: float, dim: float = 1.0) -> None:
    thick = 0.06 + 0.03 * easel.breed.girth
    knee = x + (foot - x) * 0.4, top * 0.5
    leg = frame.limb((x, top, thick * 1.5), (*knee, thick), (foot, -0.06, thick * 0.8))
    easel.fur("leg", leg, dim=dim)
    easel.marking("shin", frame.oval(foot, -0.02, 0.16, -0.5 * top), leg)
    _draw_paw(easel, frame, foot + 0.035, thick * 1.1, dim)


def _draw_hindleg(easel: Easel, frame: Frame, x: float, top: float, foot: float, dim: float = 1.0) -> None:
    thick = 0.06 + 0.03 * easel.breed.girth
    thigh, knee = (x, top, thick * 2.3), (x + 0.1, top * 0.62, thick * 1.5)
    leg = frame.limb(thigh, knee, (foot - 0.09, top * 0.33, thick * 0.75), (foot, -0.05, thick * 0.75))
    easel.fur("leg", leg, dim=dim)
    easel.marking("shin", frame.oval(foot, -0.02, 0.18, -0.4 * top), leg)
    _draw_paw(easel, frame, foot + 0.04, thick * 1.1, dim)


def _draw_paw(easel: Easel, frame: Frame, x: float, wide: float, dim: float = 1.0) -> None:
    high = 0.045 + 0.18 * wide
    easel.fur("paw", frame.oval(x, -high * 0.75, wide, high), dim=dim)
    for toe in (x - 0.28 * wide, x + 0.3 * wide):
        easel.enamel(frame.limb((toe, -high * 0.75, 0.007), (toe, -high * 0.1, 0.007)), "#2a211d")


def _draw_collar(easel: Easel, frame: Frame) -> None:
    colour = easel.rng.choice(["#b3272d", "#2458a6", "#2f7d4f", "#d9a520", "#7a3f8f", *[""] * 5])
    if colour:
        easel.enamel(frame.limb((-0.26, -0.08, 0.04), (0, 0.03, 0.04), (0.26, -0.08, 0.04)), colour, 0.5)
        easel.enamel(frame.oval(0.02, 0.1, 0.045, 0.045), "#d8b04a", 0.75)


def _cast_shadow(easel: Easel, frame: Frame, half: float) -> None:
    easel.shadow(frame.oval(-0.1 * frame.flip * easel.light[0], -0.03, half * 1.1, 0.11))


def stand(easel: Easel, frame: Frame) -> None:
    """Standing, seen from the side."""
    girth, long, high = easel.breed.girth, 0.5 * easel.breed.body, -0.55 * easel.breed.legs - 0.05
    deep, step = 0.27 * girth, easel.near(0.0, 0.11)
    _cast_shadow(easel, frame, long)
    _draw_tail(easel, frame.inside(-long - 0.12, high - 0.26))
    _draw_hindleg(easel, frame, -long + 0.06, high - 0.1, -long + 0.1 - step, 0.7)
    _draw_foreleg(easel, frame, long - 0.02, high - 0.05, long + 0.06 - step, 0.7)
    hip, waist = (-long, high - 0.2, deep * 0.85), (-long * 0.3, high - 0.2, deep * 0.82)
    torso = frame.limb(hip, waist, (long, high - 0.18, deep * 1.12))
    neck = frame.limb((long - 0.04, high - 0.24, deep), (long + 0.2, high - 0.7, 0.19 * girth**0.5))
    easel.fur("torso", torso, neck)
    easel.marking("saddle", frame.limb((-long - 0.1, high - 0.38, deep), (long, high - 0.46, 0.26)))
    easel.marking("chest", frame.limb((long + 0.2, high - 0.12, 0.15), (long + 0.3, high - 0.6, 0.19)))
    _draw_hindleg(easel, frame, -long - 0.02, high - 0.14, -long + 0.04 + step)
    _draw_foreleg(easel, frame, long - 0.06, high - 0.1, long - 0.02 + step)
    _draw_collar(easel, frame.inside(long + 0.22, high - 0.52))


def sit(easel: Easel, frame: Frame) -> None:
    """Sitting, seen from the front."""
    girth, tall = easel.breed.girth, -0.62 - 0.3 * easel.breed.legs
    deep, thick = 0.3 * girth, 0.22 * girth**0.5
    _cast_shadow(easel, frame, deep + 0.2)
    _draw_tail(easel, frame.inside(-0.3, -0.2))
    torso = frame.limb((0, -0.2, deep * 1.2), (0.02, tall * 0.6, deep * 1.1), (0.05, tall, deep * 0.72))
    easel.fur("torso", torso, frame.limb((0.03, tall + 0.05, thick * 1.1), (0.05, tall - 0.15, thick * 0.9)))
    easel.marking("saddle", frame.limb((-0.42, -0.1, 0.22), (-0.32, tall, 0.2)))
    easel.marking("chest", frame.oval(0.04, tall * 0.85, 0.2, 0.36))
    for side in (-deep, deep):
        easel.fur("leg", frame.oval(side * 1.12, -0.2, deep * 0.63, 0.23, side))
        _draw_paw(easel, frame, side * 1.3, 0.13)
    for side in (-deep, deep):
        _draw_foreleg(easel, frame, side * 0.5, tall * 0.62, side * 0.48)
    _draw_collar(easel, frame.inside(0.05, tall + 0.02))


def lie(easel: Easel, frame: Frame) -> None:
    """Lying, the forelegs towards us."""
    girth, long, front = easel.breed.girth, 0.55 * easel.breed.body, 0.4 * easel.breed.body
    deep, thick = 0.26 * girth, 0.21 * girth**0.5
    _cast_shadow(easel, frame, long + 0.2)
    _draw_tail(easel, frame.inside(-long - 0.08, -0.26))
    torso = frame.limb((-long, -deep, deep), (0, -deep - 0.02, deep * 0.95), (front, -deep - 0.1, deep * 1.1))
    easel.fur("torso", torso, frame.limb((front, -deep - 0.1, deep), (front + 0.03, -deep - 0.55, thick)))
    easel.marking("saddle", frame.limb((-long - 0.1, -deep * 1.8, deep), (front, -deep * 2, deep)))
    easel.marking("chest", frame.oval(front + 0.06, -deep - 0.12, 0.19, 0.34))
    easel.fur("leg", frame.oval(-long + 0.08, -0.23, deep * 0.96, 0.23))
    _draw_paw(easel, frame, -long + 0.28, 0.16)
    for foot in (front - 0.14, front + 0.16):
        easel.fur("leg", frame.limb((foot - 0.04, -0.32, 0.11), (foot, -0.1, 0.1)))
        _draw_paw(easel, frame, foot + 0.02, 0.14)
    _draw_collar(easel, frame.inside(front + 0.04, -deep - 0.36))


# A pose: what draws it, and where the head then belongs.
POSES: Final[tuple[tuple[Callable[[Easel, Frame], None], Callable[[Breed], tuple[float, float]]], ...]] = (
    (stand, lambda breed: (0.5 * breed.body + 0.27, -0.55 * breed.legs - 0.93)),
    (sit, lambda breed: (0.06, -0.96 - 0.3 * breed.legs)),
    (lie, lambda breed: (0.4 * breed.body + 0.05, -0.26 * breed.girth - 0.66)),
)


def pattern(name: str, rng: Generator, shape: tuple[int, int], unit: float) -> Array:
    """The share of the second colour, `[H, W]` or `[1, 1]`, to be clipped to 0..1; `unit` in pixels."""
    amount: Array = np.zeros((1, 1), np.float32)
    if name == "spots":
        amount = cloud(rng, shape, 0.06 * unit) * 9 - 9
    if name == "patches":
        amount = cloud(rng, shape, 0.3 * unit) * 16 - 4
    if name == "merle":
        amount = cloud(rng, shape, 0.12 * unit) * 3 + cloud(rng, shape, 0.04 * unit) * 2 - 1
    if name == "brindle":
        way = np.linspace(0, 75 * shape[1] / unit, shape[1], dtype=np.float32)
        bend = way + 3 * cloud(rng, shape, 0.3 * unit)
        amount = 1.5 * np.sin(bend) + cloud(rng, shape, 0.1 * unit) * 0.8 - 0.2
    return amount
