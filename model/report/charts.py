"""Numbers of a run as the page's pictures: curves of the losses and the accuracy, reliability diagrams.

Before it: rows of a run folder's files, which may lack anything. After it: `report` puts them on the page.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from greyhound.model.report.figures import curve, reliability
from greyhound.model.report.text import finite, number, percent

MIDDLE: Final = 0.5
END: Final = 1.0
"""Where in an epoch its mean training loss stands, and what was validated after it: epoch e is e to e + 1."""


@dataclass(frozen=True)
class Chart:
    """A curve over the epochs. picture: a data URI; None if fewer than two values are known."""

    name: str
    note: str
    last: str
    best: str
    picture: str | None


def data_uri(picture: bytes, kind: str = "png") -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def draw_charts(
    metrics: Sequence[Any], labels: str, steps: Sequence[Any] = (), images: object = None
) -> list[Chart]:
    """The three curves of a training. Its two losses are different quantities and never share an axis.

    labels: of the training, in words. steps: rows of steps.jsonl, which draw the training loss within the
    epochs. images: of an epoch.
    """
    epochs = [index if row.get("epoch") is None else row["epoch"] for index, row in enumerate(metrics)]
    training, validation, accuracy = (
        [row.get(key) for row in metrics] for key in ("train_loss", "valid_loss", "accuracy")
    )
    thin = by_step(steps, images)
    note = f"{labels}, augmented images{'; thin: by step' if thin else ''}"
    return [
        draw_chart("Training loss", note, epochs, training, MIDDLE, steps=thin),
        draw_chart("Validation loss", "true labels, images as they are", epochs, validation),
        draw_chart("Validation accuracy", "share of images named correctly", epochs, accuracy, percents=True),
    ]


def describe_labels(recipe: Mapping[str, Any]) -> str:
    """What labels a recipe trains on, in words."""
    augment = recipe.get("augment") or {}
    mixed = "mixed" if augment.get("mixup") or augment.get("cutmix") else ""
    kinds = [kind for kind in ("smoothed" if recipe.get("label_smoothing") != 0 else "", mixed) if kind]
    return f"{' and '.join(kinds) or 'true'} labels"


def by_step(steps: Sequence[Any], images: object) -> list[tuple[float, float]]:
    """Where in the training, in epochs, the training loss was what. images: of an epoch."""
    if not finite(images) or images < 1:
        return []
    names = ("epoch", "images", "train_loss")
    rows = [[row.get(name) for name in names] for row in steps]
    return [
        (epoch + done / images, loss) for epoch, done, loss in rows if all(map(finite, (epoch, done, loss)))
    ]


def draw_chart(
    name: str,
    note: str,
    epochs: Sequence[int],
    values: Sequence[object],
    at: float = END,
    percents: bool = False,
    steps: Sequence[tuple[float, float]] = (),
) -> Chart:
    """The curve of the values that are finite numbers. Best: the lowest loss, the highest share.

    at: where in its epoch a value stands. steps: places and values within the epochs.
    """
    known = {epoch: value for epoch, value in zip(epochs, values, strict=True) if finite(value)}
    text, factor, better = (percent, 100, max) if percents else (number, 1, min)
    places = [epoch + at for epoch in epochs]
    heights = [known.get(epoch, math.nan) * factor for epoch in epochs]
    picture = data_uri(curve(places, heights, percents, steps)) if len(steps or known) > 1 else None
    if not known:
        return Chart(name, note, last="–", best="no values", picture=picture)
    best = better(known, key=lambda epoch: known[epoch])
    return Chart(
        name,
        note,
        last=text(list(known.values())[-1]),
        best=f"best {text(known[best])} in epoch {best}",
        picture=picture,
    )


def draw_diagram(side: Any) -> str | None:
    """The reliability diagram of one side of eval.json's calibration; None where it has no bins."""
    bins = side.get("bins") or []
    known = bins and all(len(row) == 3 and all(map(finite, row)) for row in bins)
    return data_uri(reliability(bins)) if known else None
