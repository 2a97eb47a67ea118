"""The end of a training whose loss or gradient is not finite: what is known of the batch, written down.

Before it: train, which has read that from the device. After it: diverged.json and diverged.png, which the
report names.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from greyhound.model import distributed
from greyhound.model.report import figures, report
from greyhound.model.run import DIVERGED, DIVERGED_PICTURE, RunError
from greyhound.model.state import NEVER
from greyhound.model.step import DivergedError, remedy
from greyhound.pipelines.loader import Position
from greyhound.session import TrainContext

SHEET_COLUMNS: Final = 8
"""Images beside each other in the picture of a batch."""


@dataclass(frozen=True)
class Divergence:
    """The first batch whose loss, or its gradient, was not finite. Its fields are those of diverged.json."""

    epoch: int
    images: int
    """Of this epoch, done before it."""
    learning_rate: float
    rows: list[int]
    """Of the pack."""
    paths: list[str]


def raise_if_diverged(context: TrainContext) -> None:
    """Stop where a loss or gradient was not finite: say where, and on what. Raises DivergedError."""
    if context.state.diverged != NEVER:
        distributed.broadcast_from_main(lambda: _refuse(context))


def _refuse(context: TrainContext) -> NoReturn:
    """Decode the batch again, all ranks' part of it, and write down what is known of it.

    Its images are shown before any of them are mixed: each rank mixes among its own. Raises DivergedError.
    """
    context.saver.wait()  # it may be writing the report
    recipe, state, training, folder = context.recipe, context.state, context.training, context.run
    augment, images = replace(recipe.augment, mixup=0.0, cutmix=0.0), len(training.ids)
    with training.again(Position(state.epoch, state.diverged), augment) as loader:
        batch = next(iter(loader))
    rows = batch.ids.tolist()
    rate = recipe.lr_at(state.epoch + state.diverged / images, batch.global_batch_size / images)
    paths = [training.pack.image_path(row) for row in rows]
    found = Divergence(state.epoch, state.diverged, rate, rows, paths)
    folder.write(DIVERGED, asdict(found))
    picture = folder.folder / DIVERGED_PICTURE
    pixels = augment.to_pixels(batch.flat()[0].numpy(force=True))
    figures.image_sheet(picture, _sheet(pixels), [""] * SHEET_COLUMNS)
    with suppress(RunError):
        report.build(folder.folder)
    unmixed = ", before they are mixed" if recipe.augment.mixes else ""
    raise DivergedError(
        f"the loss or its gradient is not finite in epoch {found.epoch}, after {found.images} of {images} "
        f"images, at a learning rate of {rate:g}; the batch's rows of the pack are {_brief(rows)}, {picture} "
        f"shows them{unmixed}; {remedy(recipe.max_grad_norm)}"
    )


def _sheet(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of `SHEET_COLUMNS` images, black where the last has none: uint8 `[rows, columns, S, S, 3]`."""
    rows = -(-len(pixels) // SHEET_COLUMNS)
    sheet = np.zeros((rows * SHEET_COLUMNS, *pixels.shape[1:]), dtype=pixels.dtype)
    sheet[: len(pixels)] = pixels
    return sheet.reshape(rows, SHEET_COLUMNS, *pixels.shape[1:])


def _brief(rows: list[int]) -> str:
    """The first rows of a batch; diverged.json has all."""
    return ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
