"""Evaluate: a run folder in, accuracy in total and by class out, from many random crops of every image.

    python eval.py --run runs/dogs --crops 10
    python eval.py --run runs/dogs --images FOLDER

Before it: `train.py`. After it: eval.json, confusion.png and the report in the run folder; for a folder without
labels, a table of predictions.
"""

from __future__ import annotations

import csv
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import nn

from cache.command import parse, progress_bar, run
from cache.pack import Options, Source, find_unlabelled, write
from cache.store import Pack, PackError
from cache.survey import SurveyError
from model import figures, metrics, report
from model.checkpoint import CheckpointError
from model.precision import forward, has_bf16, use_fast_kernels
from model.run import EVALUATION, PACK, RECIPE, CheckpointName, Run, RunError
from pipelines.augment import Augment
from pipelines.loader import DeviceError, DeviceName, EngineName, Loader, choose, torch_device
from pipelines.request import BadImageError

IMAGES_AT_ONCE = 64
"""Views that go through the network together."""


@dataclass(frozen=True)
class Job:
    """What to evaluate, and how."""

    run: Path
    """The run folder of a training."""
    pack: Path | None = None
    """Another pack than the one trained on."""
    images: Path | None = None
    """A folder instead of a pack: subfolders named as the classes, or no labels at all."""
    split: Literal["test", "val", "train"] = "test"
    """Which images of the pack."""
    crops: int = 10
    """Random resized crops of each image; 1: the centre window alone."""
    checkpoint: CheckpointName = "auto"
    """auto: swa or best, whichever did better on the validation split."""
    worst_first: bool = False
    """List the classes by accuracy instead of by name."""
    predictions: Path | None = None
    """Where a folder without labels gets its table; default: predictions.csv in the run folder."""
    seed: int = 0
    """Other crops."""
    engine: EngineName = "auto"
    device: DeviceName = "auto"
    threads: int | None = None
    """Loader threads; default one a core."""


def main() -> int:
    """Evaluate what the command line names."""
    evaluate(parse(lambda: tyro.cli(Job, prog="python eval.py")))
    return 0


def evaluate(job: Job) -> None:
    """Open network and images, predict every crop, and write down what came of it."""
    if job.crops < 1:
        raise RunError(f"--crops is {job.crops}; expected at least 1")
    _, device = choose(job.engine, job.device)
    use_fast_kernels()
    folder = Run(job.run)
    trained = Augment.from_json(folder.read(RECIPE)["augment"])
    chosen, network = folder.network(job.checkpoint, torch_device(device))
    with open_images(job, folder) as (pack, ids):
        probabilities = predict(job, trained, network, pack, ids)
        labels = pack.labels[ids]
        if (labels < 0).all():
            write_predictions(
                job.predictions or job.run / "predictions.csv", folder, pack, ids, probabilities
            )
            return
        try:
            result = metrics.evaluate(probabilities, labels.astype(np.int64), pack.classes)
        except ValueError as error:  # a network that diverged
            raise RunError(f"{job.run}, checkpoint {chosen}: {error}") from None
        data = {"split": "images" if job.images else job.split, "data": str(job.images or pack.path)}
    conclude(job, folder, result | data | {"checkpoint": chosen, "seed": job.seed})


@contextmanager
def open_images(job: Job, folder: Run) -> Iterator[tuple[Pack, NDArray[np.int64]]]:
    """The pack to evaluate and the rows of it; a folder of images is packed for as long as the block runs."""
    if job.images is None:
        pack = open_pack(job, folder)
        ids = pack.ids(job.split)
        if not len(ids):
            raise PackError(f"{pack.path} has no images in its split {job.split}; name another: --split")
        yield pack, ids
        return
    classes = tuple(folder.read(PACK)["classes"])
    with tempfile.TemporaryDirectory(prefix="greyhound-") as temporary:
        out = Path(temporary) / "images.arrow"
        with progress_bar("looking at every image") as update:
            header = write(
                find_images(job.images, classes),
                classes,
                out,
                Options(keep_grayscale=True),
                update,
                split="test",
            )
        for row in header.excluded:
            print(f"left out: {row.path}: {row.reason} ({row.detail})", file=sys.stderr)
        pack = Pack(out)
        yield pack, pack.ids("test")


def open_pack(job: Job, folder: Run) -> Pack:
    """The pack that the run was trained on, or the one asked for, if it has the same classes."""
    trained = folder.read(PACK)
    pack = Pack(job.pack or trained["path"])
    if list(pack.classes) != trained["classes"]:
        raise PackError(
            f"{pack.path} has other classes than {job.run} was trained on; expected {len(trained['classes'])}: {', '.join(trained['classes'][:5])}, ..."
        )
    if pack.header.digest != trained["digest"]:
        print(
            f"note: {pack.path} is not the pack that {job.run} was trained on; its split may hold training images",
            file=sys.stderr,
        )
    return pack


def find_images(images: Path, classes: tuple[str, ...]) -> list[Source]:
    """The files of a folder, labelled where its subfolders carry the names of the classes. Raises PackError."""
    sources = find_unlabelled(images)
    named = {source.path.split("/")[0] for source in sources if "/" in source.path}
    if not named & set(classes):
        return sources
    if named - set(classes):
        raise PackError(
            f"{images} has the subfolder {min(named - set(classes))!r}, which is no class of this run; expected only {', '.join(classes[:5])}, ..."
        )
    loose = [source.path for source in sources if "/" not in source.path]
    if loose:
        raise PackError(
            f"{images} has images beside its class folders, {loose[0]!r} for one; move them into a class"
        )
    return [Source(source.file, source.path, classes.index(source.path.split("/")[0])) for source in sources]


@torch.no_grad()
def predict(
    job: Job, trained: Augment, network: nn.Module, pack: Pack, ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Class probabilities of every crop: float32 `[n, crops, K]`."""
    augment = trained.crops() if job.crops > 1 else trained.centre()
    bf16 = has_bf16(next(network.parameters()).device)
    parts = []
    with (
        Loader(
            pack,
            augment,
            ids,
            batch_size=max(1, IMAGES_AT_ONCE // job.crops),
            seed=job.seed,
            views=job.crops,
            epochs=1,
            engine=job.engine,
            device=job.device,
            thread_count=job.threads,
        ) as loader,
        progress_bar("evaluating") as update,
    ):
        for batch in loader:
            views = batch.images.reshape(-1, *batch.images.shape[-3:])
            logits = forward(network, views, bf16)
            parts.append(logits.softmax(1).view(len(batch.ids), job.crops, -1))
            update(loader.position.images, len(ids))
    probabilities: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
    return probabilities


def conclude(job: Job, folder: Run, result: dict[str, Any]) -> None:
    """eval.json, confusion.png, the report; and on the terminal the seed's table, then ours."""
    folder.write(EVALUATION, result)
    names = [row["name"] for row in result["classes"]]
    figures.confusion(folder.folder / "confusion.png", np.array(result["confusion"]), names)
    print("\n".join(metrics.table(result, job.worst_first)))
    rows = (
        (f"one crop, on average over {result['crops']}", result["accuracy"], result["interval"]),
        (
            f"mean of {result['crops']} probabilities",
            result["ensemble_accuracy"],
            result["ensemble_interval"],
        ),
    )
    for name, accuracy, (low, high) in rows:
        print(f"{name}: {accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}, n = {result['n']})")
    print(f"report: {report.build(folder.folder)}")


def write_predictions(
    path: Path, folder: Run, pack: Pack, ids: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> None:
    """A CSV with a row an image: path, prediction, probability (the mean over the crops)."""
    mean = probabilities.mean(axis=1)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "prediction", "probability"])
    for index, row in zip(ids, mean, strict=True):
        table.writerow([pack.image_path(index), pack.classes[row.argmax()], f"{row.max():.4f}"])
    Run(path.parent).write_text(path.name, text.getvalue())
    print(f"{len(ids)} predictions: {path}")


if __name__ == "__main__":
    run(main, PackError, SurveyError, RunError, DeviceError, CheckpointError, BadImageError)
