"""Predict: photographs in, a row for each out: its class and how sure the network is, or why it has none.

    greyhound predict --run runs/dogs dog.jpg new/ 'more/*.png' --out predictions.csv
    find . -name '*.jpg' -print0 | greyhound predict --run runs/dogs - > predictions.csv
    greyhound predict --model dogs.onnx new/

Before it: `greyhound train`, or `greyhound export`. After it: a table in the order of the files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from greyhound.cache.cli import end_quietly, read_or_exit
from greyhound.cache.machine import alone
from greyhound.cache.options import check_counts, check_seed, read_options
from greyhound.pipelines.engine import Resources


@dataclass(frozen=True)
class Job:
    """Predict photographs with a trained network: a row for each, in order, as soon as it is known."""

    paths: tuple[str, ...] = field(default=(), metadata={"bare": True})
    """Files, folders with all that is in them, quoted patterns such as 'new/**/*.jpg'; -: a list of files on
    standard input, one a line, or ended by NUL."""
    run: Path | None = None
    """The run folder of a training."""
    model: Path | None = None
    """An ONNX file of greyhound export instead of a run; torch is not needed then."""
    out: Path | None = None
    """The table, a .csv, .jsonl or .parquet file. Default: standard output, as CSV, or as lines to read where
    that is a terminal."""
    top: int = 1
    """Classes in a row, the most probable first."""
    probabilities: bool = False
    """The probability of every class too."""
    crops: int = 1
    """Random crops of each image, whose probabilities are averaged; 1: the window in the centre."""
    checkpoint: Literal["auto", "swa", "best", "last"] = "auto"
    """auto: swa or best, whichever did better on the validation split."""
    pack: Path | None = None
    """Where the pack of the training is now, if its probabilities are to be calibrated for the first time."""
    batch_size: int | None = None
    """Crops in one forward pass. Default: 64 on a GPU, 16 on a CPU."""
    seed: int = 0
    """Another seed draws other crops."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuse contradictions. Raises ValueError."""
        if (self.run is None) == (self.model is None):
            raise ValueError("name one network: --run RUN, or --model FILE.onnx")
        if not self.paths:
            raise ValueError("name the photographs: files, folders, patterns, or - for a list")
        check_counts(crops=self.crops, batch_size=self.batch_size, top=self.top)
        check_seed(self.seed)
        if self.out and self.out.suffix.lower() not in (".csv", ".jsonl", ".parquet"):
            raise ValueError(f"--out is {self.out}; expected a name that ends in .csv, .jsonl or .parquet")
        changed = self.crops > 1 or self.batch_size or self.pack or self.seed or self.checkpoint != "auto"
        if self.model and (changed or self.resources != Resources()):
            raise ValueError("--model has its own crop and weights; expected none of a run's flags beside it")


if __name__ == "__main__":
    # Ctrl-C ends the imports without a traceback. --help and a slip are answered before them.
    end_quietly()
    JOB = read_or_exit(lambda: alone(read_options(Job, sys.argv[1:], "greyhound predict"), "predict"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

from greyhound.cache.cli import note, progress_bar, run
from greyhound.cache.errors import UserError
from greyhound.cache.files import DiskList
from greyhound.prediction import (
    ImageFile,
    Prediction,
    check_out,
    columns,
    expand,
    find,
    open_rows,
    say_uncalibrated,
    to_row,
)


@dataclass(frozen=True)
class Predictor:
    """What looks at the files. why: why its probabilities are not calibrated, "" where they are."""

    classes: tuple[str, ...]
    predict: Callable[[Iterable[ImageFile]], Generator[Prediction]]
    why: str = ""


def main(job: Job) -> int:
    """Predict what the command line names. The exit code."""
    words = expand(job.paths)
    if job.out:
        check_out(job.out)
    if job.model:
        from greyhound.exported import open_exported

        exported = open_exported(job.model)
        write_rows(job, words, Predictor(exported.classes, exported.predict))
        return 0
    from greyhound.model.dry_run import refusing_out_of_memory
    from greyhound.session import EVALUATED, open_device

    batch_size = job.batch_size or EVALUATED[open_device(job.resources)[1]]
    remedy = "lower --batch-size and --crops, or use --device cpu"
    with refusing_out_of_memory(f"{max(batch_size, job.crops)} crops at once", remedy):
        write_rows(job, words, open_run(job))
    return 0


def open_run(job: Job) -> Predictor:
    """The trained network, its temperature known. Raises RunError."""
    from greyhound.trained import Crops, open_calibrated, predict

    assert job.run
    trained, fitted = open_calibrated(job.run, job.checkpoint, job.resources, job.pack, job.crops)
    crops = Crops(job.crops, job.batch_size, job.seed)

    def look(images: Iterable[ImageFile]) -> Generator[Prediction]:
        return predict(trained, images, job.resources, crops, fitted.temperature)

    return Predictor(trained.classes, look, fitted.why)


def write_rows(job: Job, words: list[str], predictor: Predictor) -> None:
    """Write the rows, and say what they come to. Raises UserError where no file could be read."""
    right, unread, labelled, first = 0, 0, 0, ""
    with DiskList(find(words, predictor.classes)) as images:
        if not len(images):
            raise UserError("the list on standard input names no files")
        labels = any(each.true_class for each in images)
        names = columns(predictor.classes, job.top, job.probabilities, labels)
        shown = bool(job.out) or not sys.stdout.isatty()
        with (
            open_rows(job.out, names) as write,
            progress_bar("predicting", shown) as update,
            closing(predictor.predict(images)) as found,
        ):
            for done, prediction in enumerate(found, start=1):
                row = to_row(prediction, predictor.classes, names)
                write(row)
                update(done, len(images))
                first = first or f"{prediction.image.path}: {prediction.error}" * bool(prediction.error)
                unread += bool(prediction.error)
                labelled += row.get("right") is not None
                right += row.get("right") is True
        if unread == len(images):
            raise UserError(f"none of {unread:,} files could be read; the first: {first}")
    if job.out:
        print(f"{len(images):,} rows: {job.out}", file=sys.stderr)
    if labelled:
        say_accuracy(right, labelled)
    note(f"{unread:,} of {len(images):,} files could not be read; the column error says why" * bool(unread))
    say_uncalibrated(predictor.why)


def say_accuracy(right: int, labelled: int) -> None:
    """The share of the labelled files that were right, on standard error: standard output has the rows."""
    from greyhound.model.metrics import wilson

    low, high = wilson(right, labelled)
    found = f"accuracy: {right / labelled:.3f} (95 % interval {low:.3f} to {high:.3f}, n = {labelled:,})"
    print(found, file=sys.stderr)


if __name__ == "__main__":
    run(lambda: main(JOB))
