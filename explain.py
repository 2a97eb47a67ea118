"""Explain: where a trained network looks, as the gradient of the loss at the pixels of random test images.

    greyhound explain --run runs/dogs --count 12

Before it: `greyhound train`. After it: saliency.png, saliency.json and the report in the run folder.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from greyhound.cache.cli import end_quietly, read_or_exit
from greyhound.cache.options import read_options
from greyhound.pipelines.engine import Resources


@dataclass(frozen=True)
class Job:
    """Show where a trained network looks."""

    run: Path
    """The run folder of a training."""
    count: int = 12
    """Images, drawn at random."""
    split: Literal["test", "val", "train"] = "test"
    """The images of the pack to draw from."""
    pack: Path | None = None
    """A pack with the same classes; default: the pack of the training."""
    checkpoint: Literal["auto", "swa", "best", "last"] = "auto"
    """auto: swa or best, whichever did better on the validation split."""
    seed: int = 0
    """Another seed draws other images."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuse numbers that draw nothing. Raises ValueError."""
        if self.count < 1:
            raise ValueError(f"--count is {self.count}; expected at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed is {self.seed}; expected 0 to 2**63 - 1")


if __name__ == "__main__":
    # Ctrl-C ends the imports without a traceback. --help and a slip are answered before them.
    end_quietly()
    JOB = read_or_exit(lambda: read_options(Job, sys.argv[1:], "greyhound explain"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

from greyhound.cache.cli import from_json, note, run
from greyhound.cache.errors import UserError
from greyhound.cache.store import Pack
from greyhound.model import saliency
from greyhound.model.dry_run import refusing_out_of_memory
from greyhound.model.report import figures, report
from greyhound.model.run import RECIPE, SALIENCY, Run
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.loader import Batch, Loader
from greyhound.pipelines.order import epoch_order
from greyhound.session import open_device, open_trained_pack


def explain(job: Job) -> None:
    """Draw the images as evaluation sees them, compute the gradient, write the sheet."""
    with refusing_out_of_memory(f"{job.count} images at once", "lower --count, or use --device cpu"):
        folder, (_, _, device) = Run(job.run), open_device(job.resources)
        origin, network = folder.network(job.checkpoint, device)
        pack = open_trained_pack(folder, job.pack, job.resources)
        augment = from_json(Augment, folder.read(RECIPE)["augment"], f"{job.run / RECIPE}, augment").centre()
        batch = draw_images(job, pack, augment)
        result = saliency.saliency(network, batch.images, batch.labels)
        columns, classes = (batch.ids, batch.labels, result.predictions, result.loss), pack.classes
        rows = [
            {"path": pack.image_path(row), "true": classes[true], "predicted": classes[guess], "loss": loss}
            for row, true, guess, loss in zip(*(column.tolist() for column in columns), strict=True)
        ]
        folder.write(SALIENCY, {**origin, "images": rows})
        figures.saliency_sheet(
            folder.folder / "saliency.png",
            augment.to_pixels(batch.images.numpy(force=True)),
            saliency.normalise(result.gradient),
            [f"true: {row['true']}\npredicted: {row['predicted']}\nloss: {row['loss']:.3f}" for row in rows],
            [row["true"] == row["predicted"] for row in rows],
        )
        print(f"{len(rows)} images: {folder.folder / 'saliency.png'}")
        print(f"report: {report.build(folder.folder)}")


def draw_images(job: Job, pack: Pack, augment: Augment) -> Batch:
    """`count` random images of the split, as evaluation sees them."""
    ids = pack.ids(job.split)
    if not len(ids):
        raise UserError(f"{pack.path} has no images in its split {job.split}; name another: --split")
    chosen = epoch_order(ids, job.seed, 0)[: job.count]
    with Loader(pack, augment, chosen, job.resources, batch_size=len(chosen), epochs=1) as loader:
        note(loader.describe_corrupt())
        return next(iter(loader))


if __name__ == "__main__":
    run(lambda: explain(JOB))
