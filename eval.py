"""Evaluate: a run folder in, accuracy in total and by class out, from many random crops of every image.

    greyhound eval --run runs/dogs --crops 10
    greyhound eval --run runs/dogs --images FOLDER

Before it: `train.py`. After it: eval.json, confusion.png and the report in the run folder; for a folder without
labels, a table of predictions.
"""

from __future__ import annotations

import csv
import io
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

if __name__ == "__main__":
    # Ctrl-C ends the imports without a traceback; `run` takes over.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import nn

from greyhound.cache.command import note, parse, plain, progress_bar, run
from greyhound.cache.findings import Lines
from greyhound.cache.pack import Options, Source, find_unlabelled, named_as_image, write
from greyhound.cache.store import Pack, PackError
from greyhound.cache.survey import SurveyError
from greyhound.cache.values import ValueFormatError, from_json
from greyhound.model import metrics, ranks
from greyhound.model.checkpoint import CheckpointError
from greyhound.model.inference import folded
from greyhound.model.memory import refusing_out_of_memory
from greyhound.model.precision import forward, has_bf16, use_fast_kernels
from greyhound.model.report import figures, report
from greyhound.model.run import CheckpointName, Run, RunError
from greyhound.model.shapes import EVALUATION, PACK, RECIPE
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.loader import Loader, Resources, choose, torch_device
from greyhound.pipelines.request import ResourcesError, StreamError

GUESSES: Final = 3
"""Classes that the table of predictions names, the likeliest first."""


@dataclass(frozen=True)
class Job:
    """What to evaluate, and how."""

    run: Path
    """The run folder of a training."""
    pack: Path | None = None
    """Another pack than the one trained on."""
    images: Path | None = None
    """A folder instead of a pack: subfolders named as the classes, or no labels at all."""
    split: Literal["test", "val", "train"] | None = None
    """Which images of the pack; default: test."""
    crops: int = 10
    """Random resized crops of each image; 1: the centre window alone."""
    batch_size: int = 64
    """Crops that go through the network together; those of one image always do."""
    checkpoint: CheckpointName = "auto"
    """auto: swa or best, whichever did better on the validation split, by what the recipe selects."""
    worst_first: bool = False
    """List the classes by accuracy instead of by name."""
    predictions: Path | None = None
    """Where a folder without labels gets its table; default: predictions.csv in the run folder."""
    seed: int = 0
    """Other crops."""
    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.crops < 1:
            raise ValueError(f"crops is {self.crops}; expected at least 1")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; expected 0 to 2**63 - 1")
        if self.images and (self.pack or self.split):
            raise ValueError("--images is a folder of its own; expected neither --pack nor --split beside it")


def main() -> int:
    """Evaluate what the command line names."""
    try:
        job = parse(lambda: tyro.cli(Job, prog="greyhound eval"))
    except ValueError as error:  # a job that refuses its numbers
        raise RunError(str(error)) from None
    size = f"{max(job.batch_size, job.crops)} crops at once"
    with refusing_out_of_memory(size, "lower --batch-size and --crops, or use --device cpu"):
        evaluate(job)
    return 0


def evaluate(job: Job) -> None:
    """Open network and images, predict every crop, and write down what came of it."""
    engine, where = choose(job.resources.engine, job.resources.device)
    device = torch_device(where)
    use_fast_kernels(device)
    with ranks.joined(device):
        if ranks.count() > 1 and job.images:
            raise RunError("--images is for one process; start it without torchrun, or pack the images")
        evaluate_on(replace(job, resources=job.resources.shared(ranks.neighbours())), engine, where, device)


def evaluate_on(job: Job, engine: str, where: str, device: torch.device) -> None:
    """The rest of `evaluate`, once it is known where it runs."""
    folder = Run(job.run)
    recipe = folder.read(RECIPE)
    trained = from_json(Augment, recipe["augment"], f"{job.run / RECIPE}, augment")
    bf16 = recipe["precision"] == "bf16" and has_bf16(device)
    origin, network = folder.network(job.checkpoint, device)
    with open_images(job, folder) as (pack, ids):
        if job.predictions and (pack.labels[ids] >= 0).any():
            raise RunError(
                "--predictions is for a folder without labels; these images have labels: leave it out"
            )
        asked = ids
        ids, probabilities = predict(job, trained, folded(network, trained.size), pack, ids, bf16)
        if not ranks.leads():
            return
        labels, left_out = pack.labels[ids], [pack.image_path(row) for row in np.setdiff1d(asked, ids)]
        if (labels < 0).all():
            write_predictions(job.predictions or job.run / "predictions.csv", pack, ids, probabilities)
            return
        try:
            result = metrics.evaluate(probabilities, labels.astype(np.int64), pack.classes)
        except ValueError as error:  # a network that diverged
            raise RunError(f"{job.run}, checkpoint {origin['checkpoint']}: {error}") from None
        name, data = describe_data(job, folder, pack)
    how = {"precision": "bf16" if bf16 else "fp32", "engine": engine, "device": where, "seed": job.seed}
    data |= {"left_out": len(left_out), "left_out_images": left_out}
    conclude(job, folder, name, result | data | origin | how)


@contextmanager
def open_images(job: Job, folder: Run) -> Iterator[tuple[Pack, NDArray[np.int64]]]:
    """The pack to evaluate and the rows of it; a folder of images is packed for as long as the block runs."""
    if job.images is None:
        pack, split = open_pack(job, folder), job.split or "test"
        ids = pack.ids(split)
        if not len(ids):
            raise PackError(f"{pack.path} has no images in its split {split}; name another: --split")
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
            print(plain(f"left out: {row.path}: {row.reason} ({row.detail})"), file=sys.stderr)
        pack = Pack(out)
        yield pack, pack.ids("test")


def open_pack(job: Job, folder: Run) -> Pack:
    """The pack that the run was trained on, or the one asked for, if it has the same classes."""
    trained = folder.read(PACK)
    pack = Pack(job.pack or trained["path"], job.resources.residency)
    pack.require_classes(trained["classes"], str(job.run))
    if pack.header.digest != trained["digest"]:
        note(f"{pack.path} is not the pack that {job.run} was trained on; its split may hold training images")
    return pack


def describe_data(job: Job, folder: Run, pack: Pack) -> tuple[str, dict[str, Any]]:
    """Which images these are, and the file for their result: eval.json is for the test split of the run's own pack."""
    if job.images:
        return "eval-images.json", {"split": "images", "data": str(job.images)}
    split = job.split or "test"
    data: dict[str, Any] = {"split": split, "data": str(pack.path)}
    if pack.header.digest != folder.read(PACK)["digest"]:
        return f"eval-other-{split}.json", data
    return EVALUATION if split == "test" else f"eval-{split}.json", data


def find_images(images: Path, classes: tuple[str, ...]) -> list[Source]:
    """The files of a folder, labelled where its subfolders carry the names of the classes. Raises PackError."""
    sources = find_unlabelled(images)
    named = {source.path.split("/")[0] for source in sources if "/" in source.path}
    if not named & set(classes):
        if named:
            note(f"no subfolder of {images} is named as a class of this run, so its images have no labels")
        return sources
    if named - set(classes):
        raise PackError(
            f"{images} has the subfolder {min(named - set(classes))!r}, which is no class of this run; expected only {', '.join(classes[:5])}, ..."
        )
    loose = [source.path for source in sources if "/" not in source.path and named_as_image(source.file)]
    if loose:
        raise PackError(
            f"{images} has images beside its class folders, {loose[0]!r} for one; move them into a class"
        )
    return [
        Source(source.file, source.path, classes.index(source.path.split("/")[0]))
        for source in sources
        if "/" in source.path
    ]


@torch.no_grad()
def predict(
    job: Job, trained: Augment, network: nn.Module, pack: Pack, ids: NDArray[np.int64], bf16: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The rows that are sound, int64 `[n]`, and class probabilities of every crop of theirs: float32 `[n, crops, K]`.

    Of several ranks each predicts its share; the first one gets all.
    """
    augment = trained.crops() if job.crops > 1 else trained.centre()
    parts, rows = [], []
    with (
        Loader(
            pack,
            augment,
            ids,
            job.resources,
            batch_size=max(1, job.batch_size // job.crops) * ranks.count(),
            seed=job.seed,
            views=job.crops,
            epochs=1,
            rank=ranks.rank(),
            ranks=ranks.count(),
        ) as loader,
        progress_bar("evaluating", ranks.leads()) as update,
    ):
        ranks.first_alone(note, loader.describe_damaged())
        for batch in loader:
            views = batch.images.reshape(-1, *batch.images.shape[-3:])
            logits = forward(network, views, bf16)
            parts.append(logits.softmax(1).view(len(batch.ids), job.crops, logits.shape[1]))
            rows.append(batch.ids)
            update(loader.position.images, len(loader.ids))
    found, probabilities = ranks.gathered(torch.cat(rows)), ranks.gathered(torch.cat(parts)).cpu()
    order = found.argsort()
    return found[order].numpy(), probabilities[order].numpy()


def conclude(job: Job, folder: Run, name: str, result: dict[str, Any]) -> None:
    """The result's JSON, its confusion matrix, the report; and on the terminal the seed's table, then ours."""
    folder.write(name, result)
    picture = folder.folder / name.replace("eval", "confusion").replace(".json", ".png")
    shown = metrics.most_confused(result, figures.DRAWN)
    rows = [result["classes"][index] for index in shown]
    figures.confusion(
        picture,
        metrics.confusion_among(result, shown),
        [row["name"] for row in rows],
        np.array([row["n"] for row in rows]),
    )
    print("\n".join(map(plain, metrics.table(result, job.worst_first))))
    crops = result["crops"]
    lines = [
        (f"one crop, on average over {crops}", result["accuracy"], result["interval"]),
        (f"mean of {crops} probabilities", result["ensemble_accuracy"], result["ensemble_interval"]),
    ]
    if crops == 1:
        lines = [("the centre window", result["accuracy"], result["interval"])]
    for label, accuracy, (low, high) in lines:
        print(f"{label}: {accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}, n = {result['n']})")
    print(plain(f"checkpoint: {result['checkpoint']}, after {result['after']}"))
    if name != EVALUATION:
        print(f"result: {folder.folder / name}")
    print(f"report: {report.build(folder.folder)}")


def write_predictions(
    path: Path, pack: Pack, ids: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> None:
    """A CSV with a row an image: path, then the likeliest classes with their probability, the mean over the crops."""
    mean = probabilities.mean(axis=1)
    guesses = min(GUESSES, len(pack.classes))
    text = io.StringIO()
    table = csv.writer(Lines(text))
    more = [f"{name}_{place}" for place in range(2, guesses + 1) for name in ("prediction", "probability")]
    table.writerow(["path", "prediction", "probability", *more])
    for index, row in zip(ids, mean, strict=True):
        likeliest = np.argsort(-row, kind="stable")[:guesses]
        cells = [cell for label in likeliest for cell in (pack.classes[label], f"{row[label]:.4f}")]
        table.writerow([pack.image_path(index), *cells])
    Run(path.parent).write_text(path.name, text.getvalue())
    print(f"{len(ids)} predictions: {path}")


if __name__ == "__main__":
    run(
        ranks.reporting(main),
        PackError,
        SurveyError,
        RunError,
        ranks.RanksError,
        ResourcesError,
        CheckpointError,
        StreamError,
        ValueFormatError,
    )
