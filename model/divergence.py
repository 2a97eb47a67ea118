"""A training whose loss is no number: where it came, at which rate, on which images.

Before it: train reads an epoch's losses, or its validation. After it: diverged.json and diverged.png in the run folder,
and one line that ends the training.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from greyhound.model.report import figures
from greyhound.model.run import Run, RunError
from greyhound.model.shapes import DIVERGED, DIVERGED_PICTURE

SHEET_COLUMNS: Final = 8
"""Images beside each other in the picture of a batch."""
LOWER_RATES: Final = "train into another folder at lower rates, --phases.0.high"


@dataclass(frozen=True)
class Divergence:
    """The first batch whose loss was no number; its fields are those of diverged.json."""

    epoch: int
    images: int
    """Of this epoch, done before it."""
    learning_rate: float
    rows: list[int]
    """Of the pack."""
    paths: list[str]


def check_finite(row: dict[str, Any], highest_rate: float) -> None:
    """Refuse to go on from a network that validates to no number; the checkpoints before it stay. Raises RunError."""
    if not math.isfinite(row["valid_loss"]):
        raise RunError(
            f"epoch {row['epoch']} has valid_loss = {row['valid_loss']}, so the network diverged, at rates up to "
            f"{highest_rate:g}; the checkpoints before it are kept: {LOWER_RATES}"
        )


def check_averaging(loss: float, rate: float) -> None:
    """Refuse a network that averaging drove to no number; nothing of it is kept. Raises RunError."""
    if not math.isfinite(loss):
        raise RunError(
            f"averaging came to a loss of {loss} at a rate of {rate:g}, so the network diverged; the checkpoints before "
            "it are kept: go on with a lower --averaging.rate, or --averaging.steps 0, and --force recipe"
        )


def refuse(folder: Run, found: Divergence, pixels: NDArray[np.uint8], images: int) -> NoReturn:
    """Write down what is known of the batch, and end the training. Raises RunError.

    pixels: uint8 `[B, S, S, 3]`, as the network saw it. images: in an epoch.
    """
    folder.write(DIVERGED, asdict(found))
    picture = folder.folder / DIVERGED_PICTURE
    figures.image_sheet(picture, _sheet(pixels), [""] * SHEET_COLUMNS)
    raise RunError(
        f"the loss is no number in epoch {found.epoch}, after {found.images} of {images} images, at a learning rate of "
        f"{found.learning_rate:g}; the batch's rows of the pack are {_brief(found.rows)}, {picture} shows them; the "
        f"checkpoints before it are kept: {LOWER_RATES}"
    )


def _sheet(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The images in rows of `SHEET_COLUMNS`, black where the last row has none: uint8 `[rows, columns, S, S, 3]`."""
    rows = -(-len(pixels) // SHEET_COLUMNS)
    sheet = np.zeros((rows * SHEET_COLUMNS, *pixels.shape[1:]), dtype=pixels.dtype)
    sheet[: len(pixels)] = pixels
    return sheet.reshape(rows, SHEET_COLUMNS, *pixels.shape[1:])


def _brief(rows: list[int]) -> str:
    """The first rows of a batch; diverged.json has all."""
    return ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
