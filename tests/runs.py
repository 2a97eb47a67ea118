"""A training small enough for a test: three classes that colour tells apart, a tiny network, two epochs.

Before it: `pictures`. After it: the tests of train, eval and explain share one such run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from pictures import encode, noise, packed

from greyhound import train
from greyhound.cache.pack import Options
from greyhound.cache.store import Pack
from greyhound.model.schedule import Phase
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.engine import Resources

TINY = replace(
    train.PAPER,
    name="tiny",
    network="test_efficientnet",
    weights="none",
    augment=Augment(size=32, hue=0.02),
    batch_size=8,
    phases=(Phase(epochs=2, high=0.01, low=0.002, cycles=0.5),),
    averaging=train.Averaging(steps=2, rate=0.002),
    precision="fp32",
)

FULL = replace(
    TINY,
    solve_head=True,
    first_look=5,
    frozen_statistics=True,
    distillation=0.5,
    clip=1.0,
    interpolation=3,
    layer_decay=0.9,
    ema=0.5,
    select="loss",
    phases=(Phase(epochs=2, high=2e-4, low=7e-5, cycles=0.5),),
    averaging=train.Averaging(steps=2, rate=1e-5),
)
"""Everything that `fast` does, and averaging after it; a network between the head and the end is the best."""

ONE_THREAD = Resources(device="cpu", threads=1)


class Answer(NamedTuple):
    """What a program answered."""

    code: int
    out: str
    err: str


Here: TypeAlias = Callable[..., Answer]
"""Starts a program by its file's name and its arguments; see the fixture `here`."""


def tinted(level: int, seed: int) -> bytes:
    """A busy JPEG in which one channel, 0..2, stands out."""
    pixels = noise(48, 40, seed) // 3
    pixels[..., level] += np.uint8(150)
    return encode(pixels, "JPEG")


def tiny_pack(root: Path) -> Pack:
    """60 images, 20 a class; 42 to train on, 6 for validation, 12 for the test."""
    names = ("blue <b>", "green", "red")
    images = {name: [tinted(2 - k, 100 * k + n) for n in range(20)] for k, name in enumerate(names)}
    return packed(root, images, Options(val=0.1, test=0.2))


def tiny_job(pack: Path, out: Path, resume: bool = False, recipe: train.Recipe = TINY) -> train.Job:
    """Train `recipe` on the CPU with one loader thread."""
    return train.Job(pack=pack, out=out, recipe=recipe, resources=ONE_THREAD, resume=resume)


def never() -> int | None:
    """No signal came."""
    return None
