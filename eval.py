"""Evaluate: a run folder in, accuracy in total and by class out, from many random crops of every image.

    greyhound eval --run runs/dogs --crops 10
    greyhound eval --run runs/dogs --images FOLDER

Before it: `greyhound train`. After it, in the run folder: eval.json, confusion.png, what each image got in
predictions.csv, the pictures of the worst mistakes in mistakes.json, and the report. Images without labels
are for `greyhound predict`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from greyhound.cache.cli import end_quietly, read_or_exit
from greyhound.cache.options import check_counts, check_seed, read_options
from greyhound.pipelines.engine import Resources


@dataclass(frozen=True)
class Job:
    """Measure a trained network on images that it has not seen."""

    run: Path
    """The run folder of a training."""
    crops: int = 10
    """Random crops of each image; 1: only the window in the centre."""
    images: Path | None = None
    """A folder of images, one subfolder a class, instead of a pack."""
    split: Literal["test", "val", "train"] = "test"
    """The images of the pack to evaluate."""
    pack: Path | None = None
    """A pack with the same classes; default: the pack of the training."""
    checkpoint: Literal["auto", "swa", "best", "last"] = "auto"
    """auto: swa or best, whichever did better on the validation split."""
    worst_first: bool = False
    """List the classes by accuracy instead of by name."""
    batch_size: int | None = None
    """Crops in one forward pass; the crops of one image stay together. Default: 64 on a GPU, 16 on a CPU."""
    seed: int = 0
    """Another seed draws other crops."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuse contradictions. Raises ValueError."""
        check_counts(crops=self.crops, batch_size=self.batch_size)
        check_seed(self.seed)
        if self.images and (self.pack or self.split != "test"):
            raise ValueError("--images is a folder of its own; expected neither --pack nor --split beside it")


if __name__ == "__main__":
    # Ctrl-C ends the imports without a traceback. --help and a slip are answered before them.
    end_quietly()
    JOB = read_or_exit(lambda: read_options(Job, sys.argv[1:], "greyhound eval"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from greyhound.cache.classes import class_of
from greyhound.cache.cli import note, plain, progress_bar, run
from greyhound.cache.errors import UserError
from greyhound.cache.folder import Sample, find_unlabelled, named_as_image
from greyhound.cache.pack import write_all
from greyhound.cache.picture import to_rgb
from greyhound.cache.scan import scan
from greyhound.cache.store import Pack
from greyhound.cache.survey.table import UnixLines
from greyhound.cache.thumbnail import encode_thumbnail
from greyhound.model import calibration, distributed, metrics
from greyhound.model.dry_run import refusing_out_of_memory
from greyhound.model.run import EVALUATION, MISTAKES, PACK, VALIDATION, Run
from greyhound.session import EVALUATED, is_own, open_device, open_trained_pack
from greyhound.trained import Crops, collect, open_trained, temperature

GALLERY: Final = 24
"""Mistakes that are shown, the highest loss first."""
EXAMPLES: Final = 3
"""Pictures that are shown of a pair of classes that is confused."""
SIDE: Final = 128
"""Pixels of the longer side of a picture."""


class Named(NamedTuple):
    """A row of predictions.csv: what an image is, and what it was named."""

    path: str
    true: str
    predicted: str
    probability: float
    loss: float


@dataclass(frozen=True)
class Evaluated:
    """What came of an evaluation. name: of its JSON, which holds `result`. mistakes: of mistakes.json; None
    unless the page is of these images.
    """

    name: str
    result: dict[str, Any]
    rows: list[Named]
    mistakes: dict[str, Any] | None


def evaluate(job: Job) -> dict[str, Any]:
    """Look at every crop, write what came of it, and return it, on rank 0: what eval.json holds."""
    engine, where, device = open_device(job.resources)
    at_once = job.batch_size or EVALUATED[where]
    size = f"{max(at_once, job.crops)} crops at once"
    remedy = "lower --batch-size and --crops, or use --device cpu"
    with refusing_out_of_memory(size, remedy), distributed.process_group(device):
        if distributed.world_size() > 1 and job.images:
            raise UserError("--images is for one process; start it without torchrun, or pack the images")
        resources = job.resources.shared(distributed.local_world_size())
        job, folder = replace(job, resources=resources), Run(job.run)
        distributed.broadcast_from_main(folder.refuse_read_only)
        trained = open_trained(folder, job.checkpoint, resources)
        origin = trained.origin
        with open_images(job, folder, engine) as (pack, asked, name):
            batches = trained.logits(pack, asked, resources, Crops(job.crops, at_once, job.seed))
            ids, logits = collect(batches, len(asked))
            labels = pack.labels[ids].astype("int64")
            own = is_own(pack, folder)
            fitted = temperature(trained, job.crops, resources, pack.path if own else None)
            if not distributed.is_main():
                return {}
            left_out = sorted({*asked.tolist()} - {*ids.tolist()})
            try:
                probabilities = logits.softmax(2).numpy()
                judged = metrics.judge(probabilities, labels)
                result = metrics.evaluate(probabilities, judged, pack.classes)
            except ValueError as error:  # the network diverged
                raise UserError(f"{job.run}, checkpoint {origin['checkpoint']}: {error}") from None
            result |= {"left_out": len(left_out), "left_out_images": list(map(pack.image_path, left_out))}
            result["calibration"] = calibration.describe(logits, labels, fitted)
            rows = describe_images(pack, ids, judged)
            paged = name == (EVALUATION if len(pack.ids("test")) else VALIDATION)
            shown = show_mistakes(pack, ids, judged, rows, result) if paged else None
    result |= {"split": "images" if job.images else job.split, "data": str(job.images or pack.path)}
    result |= origin | {
        "precision": "bf16" if trained.bf16 else "fp32",
        "engine": engine,
        "device": where,
        "seed": job.seed,
    }
    return conclude(job, Evaluated(name, result, rows, shown))


def main() -> None:
    """Evaluate what the command line names."""
    evaluate(JOB)


@contextmanager
def open_images(job: Job, folder: Run, engine: str) -> Iterator[tuple[Pack, NDArray[np.int64], str]]:
    """The pack to evaluate, its rows, and the result's file: eval.json is for the run's own test split.

    A folder of images is packed for the time of the block, for this engine alone.
    """
    if job.images is None:
        pack = open_trained_pack(folder, job.pack, job.resources)
        split: str = job.split
        if not is_own(pack, folder):
            trained = f"the pack that {job.run} was trained on; its split may hold training images"
            distributed.on_main(note, f"{pack.path} is not {trained}")
            split = f"other-{split}"
        ids = pack.ids(job.split)
        if not len(ids):
            raise UserError(f"{pack.path} has no images in its split {job.split}; name another: --split")
        yield pack, ids, EVALUATION if split == "test" else f"eval-{split}.json"
        return
    trained = folder.read(PACK)
    classes, background = tuple(trained["classes"]), trained["background"]
    with tempfile.TemporaryDirectory(prefix="greyhound-") as temporary:
        out = Path(temporary) / "images.arrow"
        sources = find_images(job.images, classes)
        infos = scan((each.file for each in sources), background=background, dali=engine == "dali")
        with progress_bar("looking at every image") as update, closing(infos):
            header = write_all(sources, classes, out, background, infos, update)
        for row in header.excluded:
            print(plain(f"left out: {row.path}: {row.reason} ({row.detail})"), file=sys.stderr)
        pack = Pack(out)
        yield pack, pack.ids("test"), "eval-images.json"


def find_images(images: Path, classes: tuple[str, ...]) -> list[Sample]:
    """The files of a folder whose subfolders have the names of the classes. Raises UserError."""
    wanted = "to predict images without labels: greyhound predict"
    if not images.is_dir():
        found = "is a file" if images.exists() else "is not there"
        raise UserError(f"{images} {found}; expected a folder with one subfolder a class, or, {wanted}")
    sources = find_unlabelled(images)
    folders = {source: source.path.split("/")[0] for source in sources if "/" in source.path}
    inside = {source: class_of(name, classes) or name for source, name in folders.items()}
    names = set(inside.values())
    if not names & set(classes):
        raise UserError(f"no subfolder of {images} is named as a class of this run; {wanted}")
    if foreign := names - set(classes):
        found = f"{images} has the subfolder {min(foreign)!r}, which is no class of this run"
        more = ", ..." if len(classes) > 5 else ""
        raise UserError(f"{found}; expected only {', '.join(classes[:5])}{more}")
    loose = [source.path for source in sources if source not in inside and named_as_image(source.file)]
    if loose:
        found = f"{images} has images beside its class folders, {loose[0]!r} for one"
        raise UserError(f"{found}; move them into a class")
    return [replace(source, label=classes.index(name)) for source, name in inside.items()]


def describe_images(pack: Pack, ids: NDArray[np.int64], judged: metrics.Judged) -> list[Named]:
    """A row of predictions.csv for each image."""
    columns = (judged.labels, judged.predictions, judged.probabilities.round(6), judged.losses.round(6))
    return [
        Named(pack.image_path(row), pack.classes[true], pack.classes[predicted], probability, loss)
        for row, true, predicted, probability, loss in zip(
            ids, *(column.tolist() for column in columns), strict=True
        )
    ]


def show_mistakes(
    pack: Pack, ids: NDArray[np.int64], judged: metrics.Judged, rows: list[Named], result: dict[str, Any]
) -> dict[str, Any]:
    """What mistakes.json holds: the worst mistakes, and examples of the pairs that are confused most.

    An example of a pair is an image of the one class that was taken for the other; the last is a right one of
    the other, where there is one.
    """

    def show(place: int) -> dict[str, Any]:
        try:
            with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
                pixels = to_rgb(pack.encoded(int(ids[place])).tobytes(), around=SIDE).pixels
            thumbnail = encode_thumbnail(pixels, SIDE)
        except Exception:  # Pillow is stricter than the engines, or the pack was written to since
            thumbnail = ""
        return rows[place]._asdict() | {"thumbnail": thumbnail}

    wrong, pairs = judged.mistakes(), []
    for true, predicted, _ in metrics.confused_pairs(result, metrics.PAIRS):
        of = (judged.labels[wrong] == true) & (judged.predictions[wrong] == predicted)
        places = [*wrong[of][:EXAMPLES], *judged.right(predicted)[:1]]
        names = {"true": pack.classes[true], "predicted": pack.classes[predicted]}
        pairs.append(names | {"images": list(map(show, places))})
    return {"images": list(map(show, wrong[:GALLERY])), "pairs": pairs}


def write_images(run: Run, found: Evaluated) -> str:
    """What each image got as CSV, and the pictures of mistakes, with what they are of. The CSV's SHA-256."""
    stream = io.StringIO()
    csv.writer(UnixLines(stream)).writerows([Named._fields, *found.rows])
    name = found.name.replace("eval", "predictions").replace(".json", ".csv")
    run.write_text(name, stream.getvalue())
    if found.mistakes:
        of = {key: found.result[key] for key in ("weights", "crops", "seed")}
        run.write(MISTAKES, of | found.mistakes)
    return hashlib.sha256((run.folder / name).read_bytes()).hexdigest()


def conclude(job: Job, found: Evaluated) -> dict[str, Any]:
    """Write the confusion matrix, the images, the result's JSON and the report; print the tables.

    The JSON comes last, and names its CSV by content: where a run is killed between, nobody takes one for the
    other's. Returns the JSON's content.
    """
    from greyhound.model import tracking
    from greyhound.model.report import figures, report  # matplotlib, which takes long

    folder, name, result = Run(job.run), found.name, found.result
    shown = metrics.most_confused(result, figures.DRAWN)
    rows = [result["classes"][index] for index in shown]
    figures.confusion(
        folder.folder / name.replace("eval", "confusion").replace(".json", ".png"),
        metrics.confusion_among(result, shown),
        [row["name"] for row in rows],
        [row["n"] for row in rows],
    )
    result |= {"predictions_sha256": write_images(folder, found)}
    folder.write(name, result)
    listed = result | {"classes": report.worst_first(result["classes"])} if job.worst_first else result
    print("\n".join(map(plain, metrics.table(listed))))
    if "calibration" in result:
        print(calibration.say(result["calibration"]))
    print(plain(f"checkpoint: {result['checkpoint']}, after {result['after']}"))
    if name != EVALUATION:
        print(f"result: {folder.folder / name}")
    print(f"report: {report.build(folder.folder)}")
    tracking.follow(folder.folder, note)
    return result


if __name__ == "__main__":
    run(main)
