"""Explain: where a trained network looks in random test images, by three methods, and what that is worth.

    greyhound explain --run runs/dogs --count 12

Before it: `greyhound train`. After it: saliency.png, saliency.json and the report in the run folder.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from greyhound.cache.cli import end_quietly, read_or_exit
from greyhound.cache.machine import alone
from greyhound.cache.options import check_counts, check_field, check_seed, read_options
from greyhound.pipelines.engine import Resources


@dataclass(frozen=True)
class Job:
    """Show where a trained network looks."""

    run: Path
    """The run folder of a training."""
    count: int = 12
    """Images, drawn at random; the picture shows the first 24."""
    split: Literal["test", "val", "train"] = "test"
    """The images of the pack to draw from."""
    pack: Path | None = None
    """A pack with the same classes; default: the pack of the training."""
    checkpoint: Literal["auto", "swa", "best", "last"] = "auto"
    """auto: swa or best, whichever did better on the validation split."""
    seed: int = 0
    """Another seed draws other images, and other noise."""
    copies: int = 8
    """SmoothGrad: noisy copies of each image."""
    noise: float = 0.15
    """SmoothGrad: the noise's standard deviation, as a share of the image's range."""
    boxes: Path | None = None
    """Where the objects are: a CSV with the columns path, left, top, right, bottom, in pixels of the upright
    image. Only images with a box are drawn; of each method, how often it points into one."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuse numbers that draw nothing. Raises ValueError."""
        check_counts(count=self.count, copies=self.copies)
        check_seed(self.seed)
        check_field("noise", self.noise, 0 < self.noise <= 1, "a share above 0, at most 1")


if __name__ == "__main__":
    # Ctrl-C ends the imports without a traceback. --help and a slip are answered before them.
    end_quietly()
    JOB = read_or_exit(lambda: alone(read_options(Job, sys.argv[1:], "greyhound explain"), "explain"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from greyhound.cache.cli import note, run
from greyhound.cache.errors import UserError
from greyhound.cache.store import Pack, PackError
from greyhound.cache.tables import read_table
from greyhound.model import saliency, tracking
from greyhound.model.dry_run import refusing_out_of_memory
from greyhound.model.metrics import score
from greyhound.model.network import build, head_grid
from greyhound.model.report import figures, report
from greyhound.model.run import RECIPE, SALIENCY, Run
from greyhound.pipelines.augment import Augment, draw, noise
from greyhound.pipelines.loader import Batch, Loader
from greyhound.pipelines.order import epoch_order
from greyhound.session import open_device, open_trained_pack
from greyhound.trained import recipe_augment

Boxes: TypeAlias = dict[str, list[tuple[float, float, float, float]]]
"""By path: left, top, right and bottom of each object in the image."""
MapsByName: TypeAlias = dict[str, saliency.Maps]
SHOWN: Final = 24
"""The most images in the picture: more would be metres of page."""
CHECKED: Final = 6
"""Images of the sanity check; each costs twice what its maps cost."""
_COLUMNS: Final = ("path", "left", "top", "right", "bottom")


def explain(job: Job) -> None:
    """Draw the images as evaluation sees them, look by each method, write the sheet and what it is worth."""
    with refusing_out_of_memory(f"{job.count} images at once", "lower --count, or use --device cpu"):
        boxes = read_boxes(job.boxes) if job.boxes else {}
        folder, (_, _, device) = Run(job.run), open_device(job.resources)
        folder.refuse_read_only()
        origin, network = folder.network(job.checkpoint, device)
        pack = open_trained_pack(folder, job.pack, job.resources)
        recipe = folder.read(RECIPE)
        augment = recipe_augment(folder).centre()
        batch = draw_images(job, pack, augment, boxes)
        result, maps = look(job, network, batch)
        if "Grad-CAM" not in maps:
            note(f"Grad-CAM is left out: {recipe['network']} has no convolutional maps before its head")
        torch.manual_seed(job.seed)
        random = build(recipe["network"], len(pack.classes), "none", grid=head_grid(network)).to(device)
        methods = check(job, network, random, batch, result.predictions, maps)
        columns, classes = (batch.ids, batch.labels, result.predictions, result.loss), pack.classes
        rows = [
            {"path": pack.image_path(row), "true": classes[true], "predicted": classes[guess], "loss": loss}
            for row, true, guess, loss in zip(*(column.tolist() for column in columns), strict=True)
        ]
        how = {name: getattr(job, name) for name in ("split", "seed", "copies", "noise")}
        content: dict[str, Any] = {**origin, **how, "data": str(pack.path), "methods": methods}
        if boxes:
            inside = in_boxes(augment, pack.sizes[batch.ids.numpy()], [boxes[row["path"]] for row in rows])
            content["boxes"] = point(inside, maps, methods)
        draw_sheet(folder.folder / "saliency.png", augment, batch, maps, rows)
        folder.write(SALIENCY, {**content, "images": rows})
        shown = f"; the picture shows {SHOWN}" if len(rows) > SHOWN else ""
        print(
            f"{len(rows)} {'image' if len(rows) == 1 else 'images'}: {folder.folder / 'saliency.png'}{shown}"
        )
        if boxes:
            print(say_pointing(content))
        print(f"report: {report.build(folder.folder)}")
        tracking.follow(folder.folder, note)


def read_boxes(file: Path) -> Boxes:
    """The boxes of a table with the columns path, left, top, right, bottom. Raises PackError."""
    expected = f"a CSV with the columns {', '.join(_COLUMNS)}"

    def check_columns(names: Sequence[str]) -> None:
        if not {*_COLUMNS} <= {*names}:
            raise PackError(f"{file} has the columns {', '.join(names)[:100]}; expected {expected}")

    found: Boxes = {}
    for line in read_table(file, expected, _COLUMNS, check_columns):
        words = [line.cells[name] for name in _COLUMNS[1:]]
        try:
            left, top, right, bottom = map(float, words)
            if not (left < right and top < bottom):
                raise ValueError
        except ValueError:
            what = f"{file} has the box {', '.join(words)[:100]} in line {line.number}"
            raise PackError(f"{what}; expected numbers, left < right and top < bottom") from None
        found.setdefault(line.path, []).append((left, top, right, bottom))
    if not found:
        raise PackError(f"{file} has no box; expected a line for each object")
    if max(right for boxes in found.values() for _, _, right, _ in boxes) <= 1:
        raise PackError(f"{file} has shares of the image; expected pixels of the upright image")
    return found


def draw_images(job: Job, pack: Pack, augment: Augment, boxes: Boxes) -> Batch:
    """`count` random images of the split, as evaluation sees them; where there are boxes, images with one."""
    ids, sizes = pack.ids(job.split), pack.sizes
    if not len(ids):
        raise UserError(f"{pack.path} has no images in its split {job.split}; name another: --split")
    if boxes:
        first = pack.image_path(ids[0])
        ids = np.array([row for row in ids.tolist() if pack.image_path(row) in boxes], dtype=np.int64)
        if not len(ids):
            what = f"{job.boxes} has boxes of no image in the split {job.split} of {pack.path}"
            raise UserError(f"{what}; expected paths as in the pack, such as {first}")
        for row in ids.tolist():
            refuse_box_outside(job.boxes, pack.image_path(row), boxes, *sizes[row].tolist())
    chosen = epoch_order(ids, job.seed, 0)[: job.count]
    with Loader(pack, augment, chosen, job.resources, batch_size=len(chosen), epochs=1) as loader:
        note(loader.describe_corrupt())
        return next(iter(loader))


def refuse_box_outside(file: Path | None, path: str, boxes: Boxes, width: int, height: int) -> None:
    """Refuse a box that leaves its image by more than a pixel, which rounding does not. Raises UserError."""
    for left, top, right, bottom in boxes[path]:
        if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
            what = f"{file} has the box {left:g}, {top:g}, {right:g}, {bottom:g} of {path}"
            raise UserError(f"{what}, which is {width} x {height}; expected pixels of the upright image")


def look(
    job: Job, network: nn.Module, batch: Batch, classes: NDArray[np.int64] | None = None
) -> tuple[saliency.Saliency, MapsByName]:
    """What the network says of the images, and its maps by method.

    gradient and SmoothGrad: of the loss of the true class. Grad-CAM: of the logits of `classes`, int64 `[B]`;
    of what the network predicts, where there are none.
    """
    shape, ids = batch.images.shape[1:], batch.ids.numpy()

    def draw_noise(place: slice, copy: int) -> torch.Tensor:
        numbers = noise(job.seed, ids[place], copy, math.prod(shape))
        return torch.from_numpy(numbers.reshape(-1, *shape)).to(batch.images.device)

    result = saliency.saliency(network, batch.images, batch.labels)
    smooth = saliency.smoothgrad(network, batch.images, batch.labels, draw_noise, job.copies, job.noise)
    wanted = torch.from_numpy(result.predictions if classes is None else classes).to(batch.labels.device)
    cam = saliency.grad_cam(network, batch.images, wanted)
    found = {"gradient": result.gradient, "SmoothGrad": smooth}
    return result, found if cam is None else found | {"Grad-CAM": cam}


def check(
    job: Job,
    network: nn.Module,
    random: nn.Module,
    batch: Batch,
    classes: NDArray[np.int64],
    maps: MapsByName,
) -> dict[str, dict[str, Any]]:
    """Of each method the mean rank correlation of its maps with those of a network that has not learnt.

    random_head: the network with the head of `random`; random_weights: `random` itself; `compared`: how
    many images each: a map of one value has no ranks. A map that only shows the image's edges stays as it
    was. Adebayo et al., "Sanity checks for saliency maps", 2018.
    """
    few = Batch(batch.images[:CHECKED], batch.labels[:CHECKED], batch.ids[:CHECKED], CHECKED)
    found: dict[str, dict[str, Any]] = {name: {"compared": {}} for name in maps}
    others = {"random_head": saliency.with_head(network, random), "random_weights": random}
    for what, other in others.items():
        _, theirs = look(job, other, few, classes[:CHECKED])
        for name in maps:
            alike = saliency.rank_correlation(maps[name][:CHECKED], theirs[name])
            known = alike[np.isfinite(alike)]
            found[name]["compared"][what] = len(known)
            found[name][what] = float(known.mean()) if len(known) else None
    return found


def in_boxes(
    augment: Augment, sizes: NDArray[np.int32], boxes: Sequence[Sequence[tuple[float, ...]]]
) -> NDArray[np.bool_]:
    """Which pixels of each window show a place in one of its image's boxes; bool `[n, S, S]`.

    sizes: int32 `[n, 2]`, upright. The window's pixels go to the original by the matrices of the engines.
    """
    geometry, _ = draw(augment, 0, 0, np.arange(len(sizes)), sizes)
    down, across = np.indices((augment.size, augment.size)) + 0.5
    points = np.stack([across, down, np.ones_like(down)])
    found = np.zeros((len(sizes), augment.size, augment.size), dtype=np.bool_)
    for inside, matrix, several in zip(found, geometry[:, :2].astype(np.float64), boxes, strict=True):
        x, y = np.einsum("ij,jyx->iyx", matrix, points)
        for left, top, right, bottom in several:
            inside |= (left <= x) & (x < right) & (top <= y) & (y < bottom)
    return found


def point(
    inside: NDArray[np.bool_], maps: MapsByName, methods: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """Add to each method how often its map is highest in a box (Zhang et al. 2016, the pointing game).

    Returns what that is beside: chance, the boxes' mean share of the window; and the share of the windows
    whose middle is in a box, which pointing there always would reach.
    """
    images, middle = np.arange(len(inside)), inside.shape[1] // 2
    for name, each in maps.items():
        x, y = saliency.peaks(each).T
        methods[name]["pointing"] = score(inside[images, y, x] & (x >= 0))
    return {"chance": float(inside.mean()), "middle": float(inside[:, middle, middle].mean())}


def say_pointing(content: dict[str, Any]) -> str:
    """How often each method points into a box, in a line."""
    found = {name: method["pointing"] for name, method in content["methods"].items()}
    said = [
        f"{name} {each['accuracy']:.1%} ({each['interval'][0]:.1%} to {each['interval'][1]:.1%})"
        for name, each in found.items()
    ]
    beside = f"chance {content['boxes']['chance']:.1%}, the window's middle {content['boxes']['middle']:.1%}"
    return f"points into a box, n = {found['gradient']['n']}: {', '.join(said)}; {beside}"


def draw_sheet(
    path: Path, augment: Augment, batch: Batch, maps: MapsByName, rows: Sequence[dict[str, Any]]
) -> None:
    """The picture of the first images."""
    rows = rows[:SHOWN]
    figures.saliency_sheet(
        path,
        augment.to_pixels(batch.images[:SHOWN].numpy(force=True)),
        {name: saliency.normalise(each[:SHOWN]) for name, each in maps.items()},
        [f"true: {row['true']}\npredicted: {row['predicted']}, loss {row['loss']:.3f}" for row in rows],
        [row["true"] == row["predicted"] for row in rows],
    )


if __name__ == "__main__":
    run(lambda: explain(JOB))
