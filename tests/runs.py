"""A training small enough for a test: three classes that colour tells apart, a tiny network, two epochs.

Before it: `pictures`. After it: the tests of train, eval and explain share one such run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, TypeAlias
from unittest import mock

import numpy as np
import pytest
import torch
from pictures import encode, noise, packed
from torch import nn

from greyhound import begin, train
from greyhound.cache.pack import Options
from greyhound.cache.store import Pack
from greyhound.model import checkpoint
from greyhound.model.run import Run
from greyhound.model.schedule import Phase
from greyhound.model.state import CheckpointSaver, TrainState
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Batch, Loader, Position, torch_device
from greyhound.recipe import PAPER, Averaging, Recipe, TrainOptions
from greyhound.session import START, TrainContext, open_loaders, open_state

TINY = replace(
    PAPER,
    name="tiny",
    network="test_efficientnet",
    weights="none",
    augment=Augment(size=32, hue=0.02),
    batch_size=8,
    phases=(Phase(epochs=2, high=0.02, low=0.002, cycles=0.5),),
    averaging=Averaging(steps=2, rate=0.002),
    precision="fp32",
)

FULL = replace(
    TINY,
    linear_probe=True,
    freeze_bn=True,
    select="loss",
    phases=(Phase(epochs=2, high=1e-5, low=3e-6, cycles=0.5),),
    averaging=Averaging(steps=2, rate=1e-5),
)
"""Everything that `fine` does, and averaging after it."""

SMALL: Final = ["--network", "test_efficientnet", "--weights", "none", "--size", "32", "--device", "cpu"]
"""The flags of a training as small as these."""
ONE_THREAD = Resources(device="cpu", threads=1)
NAMES: Final = ("blue <b>", "green", "red")
"""The classes that it tells apart."""


class Answer(NamedTuple):
    """What a program answered."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """What it refuses, in one line and with exit code 2."""
        assert self.code == 2, self.err
        assert self.err.startswith("error: ") and len(self.err.splitlines()) == 1
        return self.err.removeprefix("error: ")


Patch: TypeAlias = pytest.MonkeyPatch
Capture: TypeAlias = pytest.CaptureFixture[str]
Here: TypeAlias = Callable[..., Answer]
"""Starts a program by its file's name and its arguments; see the fixture `here`."""


def tinted(level: int, seed: int) -> bytes:
    """A busy JPEG in which one channel, 0..2, stands out."""
    pixels = noise(48, 40, seed) // 3
    pixels[..., level] += np.uint8(150)
    return encode(pixels, "JPEG")


def tiny_pack(root: Path) -> Pack:
    """60 images, 20 a class; 42 to train on, 6 for validation, 12 for the test."""
    images = {name: [tinted(2 - k, 100 * k + n) for n in range(20)] for k, name in enumerate(NAMES)}
    return packed(root, images, Options(val=0.1, test=0.2))


def tiny_job(pack: Path, out: Path, resume: bool = False, recipe: Recipe = TINY) -> TrainOptions:
    """Train `recipe` on the CPU with one loader thread."""
    return TrainOptions(pack=pack, out=out, recipe=recipe, resources=ONE_THREAD, resume=resume)


def never() -> int | None:
    """No signal came."""
    return None


def resume(pack: Pack, out: Path, recipe: Recipe = TINY, **fields: Any) -> None:
    """Go on with a training of `tiny_job`, to its end. fields: of the job, such as force."""
    train.train(replace(tiny_job(pack.path, out, resume=True, recipe=recipe), **fields), never)


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same network, to the bit."""
    first, second = (checkpoint.load(path)["network"] for path in (one, other))
    return checkpoint.fingerprint(first) == checkpoint.fingerprint(second)


def same_batch(one: Batch, other: Batch) -> bool:
    """Whether two batches hold the same examples of the same rows, to the bit."""
    pairs = zip(one.examples(), other.examples(), strict=True)
    return one.ids.equal(other.ids) and all(a.equal(b) for a, b in pairs)


@contextmanager
def tiny_context(
    pack: Pack, recipe: Recipe = TINY, resources: Resources = ONE_THREAD, out: Path = Path("nowhere")
) -> Iterator[TrainContext]:
    """A training before its first step. Nothing is written."""
    device = torch_device("gpu" if resources.device == "gpu" else "cpu")
    recipe, run = begin.resolve(recipe, device), Run(out)
    state = open_state(recipe, len(pack.classes), device, 0.0)
    with open_loaders(recipe, pack, resources, START) as loaders, CheckpointSaver(run) as saver:
        yield TrainContext(recipe, resources, run, state, *loaders, saver, never)


@contextmanager
def batches_seen(look: Callable[[str, Loader, Batch], None]) -> Iterator[None]:
    """Call `look` with what a training says it is doing, its loader, and each batch before it gets it."""
    following = TrainContext.with_progress

    def with_progress(context: TrainContext, title: str, loader: Loader, *rest: Any) -> Iterator[Batch]:
        for batch in following(context, title, loader, *rest):
            look(title, loader, batch)
            yield batch

    with mock.patch.object(TrainContext, "with_progress", with_progress):
        yield


class Batches:
    """Stands for a loader: one epoch of the given batches: images `[B, 3, S, S]`, labels `[B]`, perhaps weights.

    whole: images of each batch over all ranks, where there are several.
    """

    def __init__(self, batches: Sequence[tuple[torch.Tensor, ...]], classes: int, whole: int | None) -> None:
        self._batches, self._whole = batches, whole
        self.pack = SimpleNamespace(classes=range(classes))
        self.ids = range(sum(self._count(labels) for _, labels, *_ in batches))
        self.position, self.data_time, self.images_done = Position(), 0.0, 0

    def _count(self, labels: torch.Tensor) -> int:
        return len(labels) if self._whole is None else self._whole

    def epoch(self) -> Iterator[Batch]:
        for images, labels, *weights in self._batches:
            rows = torch.arange(self.images_done, self.images_done + len(labels))
            self.images_done += self._count(labels)
            over = self.images_done == len(self.ids)
            self.position = Position(1, 0) if over else Position(0, self.images_done)
            yield Batch(images, labels, rows, self._count(labels), *weights)


def train_on(
    network: nn.Module,
    batches: Sequence[tuple[torch.Tensor, ...]],
    lr: float,
    optimizer: torch.optim.Optimizer | None = None,
    called: nn.Module | None = None,
    classes: int = 2,
    whole: int | None = None,
    **fields: Any,
) -> TrainState:
    """One epoch of the loop itself, `train.train_epoch`, over given batches at one learning rate; its state.

    called: the network, wrapped. fields: of the recipe, whose labels are not smoothed unless they say so.
    """
    fields = {"label_smoothing": 0.0} | fields
    recipe = replace(TINY, phases=(Phase(epochs=1, high=lr, low=lr),), **fields)
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr=0.0)
    state = TrainState(network=network, optimizer=optimizer)
    run, loader = Run(Path("nowhere")), Batches(batches, classes, whole)
    with CheckpointSaver(run) as saver:
        context = TrainContext(recipe, ONE_THREAD, run, state, loader, loader, saver, never)  # type: ignore[arg-type]
        train.train_epoch(context, called or network)
    return state
