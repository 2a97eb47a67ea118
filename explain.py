"""Explain: where a trained network looks, as the gradient of the loss at the pixels of random test images.

    greyhound explain --run runs/dogs --count 12

Before it: `train.py`. After it: saliency.png, saliency.json and the report in the run folder.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

if __name__ == "__main__":
    # Ctrl-C ends the imports without a traceback; `run` takes over.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

import torch
import tyro
from torch import nn

from greyhound.cache.command import note, parse, run
from greyhound.cache.store import Pack, PackError
from greyhound.cache.values import ValueFormatError, from_json
from greyhound.model.checkpoint import CheckpointError
from greyhound.model.memory import refusing_out_of_memory
from greyhound.model.precision import use_fast_kernels
from greyhound.model.report import figures, report
from greyhound.model.run import CheckpointName, Run, RunError
from greyhound.model.saliency import Saliency, normalise, saliency
from greyhound.model.shapes import PACK, RECIPE
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.loader import Batch, Loader, Resources, choose, torch_device
from greyhound.pipelines.order import epoch_order
from greyhound.pipelines.request import ResourcesError, StreamError


@dataclass(frozen=True)
class Job:
    """What to explain."""

    run: Path
    """The run folder of a training."""
    pack: Path | None = None
    """Another pack than the one trained on."""
    count: int = 12
    """Images, drawn at random."""
    split: Literal["test", "val", "train"] = "test"
    """Which images of the pack."""
    checkpoint: CheckpointName = "auto"
    """auto: swa or best, whichever did better on the validation split."""
    seed: int = 0
    """Other images."""
    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuse numbers that draw nothing."""
        if self.count < 1:
            raise ValueError(f"count is {self.count}; expected at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; expected 0 to 2**63 - 1")


def main() -> int:
    """Explain what the command line names."""
    try:
        job = parse(lambda: tyro.cli(Job, prog="greyhound explain"))
    except ValueError as error:  # a job that refuses its numbers
        raise RunError(str(error)) from None
    with refusing_out_of_memory(f"{job.count} images at once", "lower --count, or use --device cpu"):
        explain(job)
    return 0


def explain(job: Job) -> None:
    """Draw the images through the evaluation's pipeline, look at the gradient, write the sheet."""
    _, where = choose(job.resources.engine, job.resources.device)
    device = torch_device(where)
    use_fast_kernels(device)
    folder = Run(job.run)
    _, network = folder.network(job.checkpoint, device)
    trained = folder.read(PACK)
    pack = Pack(job.pack or trained["path"], job.resources.residency)
    pack.require_classes(trained["classes"], str(job.run))
    recipe = from_json(Augment, folder.read(RECIPE)["augment"], f"{job.run / RECIPE}, augment")
    augment = recipe.centre()
    batch = draw_images(job, pack, augment)
    result = untouched(network, batch)
    rows = describe(pack, batch, result)
    folder.write("saliency.json", rows)
    figures.saliency_sheet(
        folder.folder / "saliency.png",
        augment.to_pixels(batch.images.numpy(force=True)),
        normalise(result.gradient),
        [f"true: {row['true']}\npredicted: {row['predicted']}\nloss: {row['loss']:.3f}" for row in rows],
        [row["true"] == row["predicted"] for row in rows],
    )
    print(f"{len(rows)} images: {folder.folder / 'saliency.png'}")
    print(f"report: {report.build(folder.folder)}")


def draw_images(job: Job, pack: Pack, augment: Augment) -> Batch:
    """`count` random images of the split, as evaluation sees them."""
    ids = pack.ids(job.split)
    if not len(ids):
        raise PackError(f"{pack.path} has no images in its split {job.split}; name another: --split")
    chosen = epoch_order(ids, job.seed, 0)[: job.count]
    with Loader(pack, augment, chosen, job.resources, batch_size=len(chosen), epochs=1) as loader:
        note(loader.describe_damaged())
        return next(iter(loader))


def untouched(network: nn.Module, batch: Batch) -> Saliency:
    """The saliency of a batch; explaining must not change what it explains, and that is checked."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = saliency(network, batch.images, batch.labels)
    for name, value in network.state_dict().items():
        if not torch.equal(value, before[name]):
            raise RuntimeError(f"explaining changed {name}; this is a bug")
    return result


def describe(pack: Pack, batch: Batch, result: Saliency) -> list[dict[str, Any]]:
    """A row an image: where it came from, what it is, what it was taken for, and the loss."""
    return [
        {
            "path": pack.image_path(index),
            "true": pack.classes[label],
            "predicted": pack.classes[prediction],
            "loss": loss,
        }
        for index, label, prediction, loss in zip(
            batch.ids.tolist(),
            batch.labels.tolist(),
            result.predictions.tolist(),
            result.loss.tolist(),
            strict=True,
        )
    ]


if __name__ == "__main__":
    run(main, PackError, RunError, ResourcesError, CheckpointError, StreamError, ValueFormatError)
