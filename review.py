"""Review the labels: which images look like another class than the one they are filed under?

    greyhound review --images FOLDER --out labels.json
    greyhound review --images FOLDER --survey SURVEY
    greyhound review --run runs/dogs --out labels.json

Before it: a folder with one subfolder a class, its survey, a pack, or a training. After it: a ranking of all
labels; with a survey, its tables and its page show the label issues.

Nothing judges an image that it was fitted to. Without a run, a linear probe is fitted to a pretrained
network's features of all folds but the image's own; a run judges the images of its splits val and test. The
ranking is by the probability of the given label. How many of the first are issues is estimated by confident
learning (Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels"; cleanlab).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from greyhound.cache.cli import end_quietly, read_or_exit
from greyhound.cache.machine import alone
from greyhound.cache.options import read_options
from greyhound.pipelines.engine import Resources


@dataclass(frozen=True)
class Job:
    """Rank the labels of a folder, a pack or a run by how wrong they look."""

    out: Path | None = None
    """The JSON ranking to write, the likeliest issues first; by default labels.json in --survey."""
    images: Path | None = None
    """A folder of images, with one subfolder a class."""
    survey: Path | None = None
    """What greyhound survey wrote about --images: mark the label issues in its tables and on its page."""
    pack: Path | None = None
    """A pack, instead of a folder; with --run: another one than it was trained on."""
    run: Path | None = None
    """A run folder: its network judges the images that it was not trained on, and shows where it looks."""
    checkpoint: Literal["auto", "swa", "best", "last"] = "auto"
    """With --run: swa or best, whichever did better on the validation split, or one by name."""
    network: str = "tf_efficientnet_lite0"
    """Without a run: whose features; any timm name."""
    weights: str = "auto"
    """Without a run: an installed package of weights, then timm's hub; or a file."""
    size: int = 224
    """Without a run: pixels a side of what the network sees."""
    folds: int = 5
    """Without a run: an image is judged by the images of the other folds."""
    neighbours: int = 3
    """Images shown beside each label issue, of either class."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if not (self.images or self.pack or self.run):
            wanted = "name a folder, a pack or a run: --images, --pack or --run"
            raise ValueError(f"there is nothing to review; {wanted}")
        if self.images and (self.pack or (self.run and not self.survey)):
            raise ValueError("--images is a folder of its own; expected neither --pack nor --run beside it")
        if self.survey and not self.images:
            raise ValueError("--survey is of a folder of images; name it too: --images")
        if not (self.out or self.survey):
            raise ValueError(
                "the ranking needs a file to be written to; name one, such as: --out labels.json"
            )
        if self.size < 32:
            raise ValueError(f"--size is {self.size}; expected at least 32 pixels")
        if self.folds < 2:
            raise ValueError(f"--folds is {self.folds}; expected at least 2")
        if self.neighbours < 0:
            raise ValueError(f"--neighbours is {self.neighbours}; expected 0 or more")

    @property
    def ranking(self) -> Path:
        """Where the ranking is written."""
        return self.out or (self.survey or Path()) / "labels.json"


if __name__ == "__main__":
    # Ctrl-C ends the imports without a traceback. --help and a slip are answered before them.
    end_quietly()
    JOB = read_or_exit(lambda: alone(read_options(Job, sys.argv[1:], "greyhound review"), "review"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from greyhound.cache.cli import note, progress_bar, run
from greyhound.cache.errors import UserError
from greyhound.cache.files import folder_beside
from greyhound.cache.nearby import THUMBNAIL
from greyhound.cache.pack import Options, pack
from greyhound.cache.store import Pack, PackError
from greyhound.cache.survey import page
from greyhound.cache.survey.labels import Neighbour, Ranked, Review, pack_surveyed
from greyhound.cache.twins import DETAILED, Pair, Twins, find_pairs
from greyhound.model import linear_probe
from greyhound.model.dry_run import refusing_out_of_memory
from greyhound.model.network import build, features_of, normalisation, pretrained_head
from greyhound.model.precision import fuse_conv_bn, has_bf16
from greyhound.model.report import figures
from greyhound.model.run import RECIPE, Run, RunError
from greyhound.model.saliency import normalise, saliency
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.loader import Loader
from greyhound.session import is_own, open_device, open_trained_pack
from greyhound.trained import recipe_augment

Ids = NDArray[np.int64]


class ReviewError(UserError):
    """The review cannot be made as asked; the message is one line for the user."""


@dataclass(frozen=True)
class Evidence:
    """What a judge says of n images of a pack, none of which it was fitted to.

    ids: rows of the pack, int64 `[n]`. labels: int64 `[n]`. probabilities: float64 `[n, K]`, rows sum to 1.
    features: float32 `[n, D]`, by whose angle images are near or far. contents: sha256 of the images' bytes.
    """

    judge: str
    pack: Pack
    ids: Ids
    labels: Ids
    probabilities: NDArray[np.float64]
    features: NDArray[np.float32]
    contents: Sequence[str]

    @property
    def paths(self) -> list[str]:
        """Where the images came from, relative to the packed folder."""
        return [self.pack.image_path(index) for index in self.ids.tolist()]


def main(job: Job) -> int:
    """Review what the command line names. The exit code."""
    with refusing_out_of_memory("64 images at once", "use --device cpu, or, without --run, lower --size"):
        review(job)
    return 0


def review(job: Job) -> Review:
    """Judge every image, rank them, describe the issues, and write it all down."""
    if find_spec("cleanlab") is None:
        raise ReviewError("cleanlab is not installed, which finds wrong labels; pip install cleanlab")
    if not job.ranking.absolute().parent.is_dir():
        raise ReviewError(f"{job.ranking.parent} is no folder; make it, or name a file in another: --out")
    if job.survey:
        page.refuse_reviewed(job.survey)
    with open_pack(job) as opened:
        evidence = judge_by_run(job, opened) if job.run else judge_by_features(job, opened)
        ranking = with_neighbours(rank(evidence), evidence, job.neighbours)
        if job.run:
            ranking = with_saliency(job, ranking, evidence)
        accuracy = float((evidence.probabilities.argmax(axis=1) == evidence.labels).mean())
        found = Review(evidence.judge, accuracy, len(opened) - len(evidence.ids), tuple(ranking))
    Run(job.ranking.parent).write_text(job.ranking.name, json.dumps(asdict(found), indent=1) + "\n")
    print("\n".join(found.describe()))
    print(f"ranking: {job.ranking}")
    if job.survey and job.images:
        page.complete(job.survey, job.images, found)
        print(f"look and decide: open {job.survey / 'survey.html'}")
    return found


@contextmanager
def open_pack(job: Job) -> Iterator[Pack]:
    """The pack to review; a folder of images is packed for as long as the block runs."""
    if job.run:
        opened = open_trained_pack(Run(job.run), job.pack, job.resources)
        if not is_own(opened, Run(job.run)):
            other = f"{opened.path} is not the pack that {job.run} was trained on"
            note(f"{other}; images that it was trained on may be among those ranked")
        yield opened
    elif job.pack:
        yield Pack(job.pack, job.resources.originals)
    elif job.images:
        with folder_beside(job.ranking) as temporary:
            out = temporary / "images.arrow"
            with progress_bar("looking at every image") as update:
                if job.survey:
                    pack_surveyed(job.images, job.survey, out, update)
                else:
                    pack(job.images, out, Options(val=0, test=0, grayscale="keep", duplicates="keep"), update)
            yield Pack(out, job.resources.originals)


def judge_by_features(job: Job, opened: Pack) -> Evidence:
    """A linear probe of a pretrained network that never saw the fold of the image it judges."""
    *_, device = open_device(job.resources)
    mean, std = normalisation(job.network)
    network = build(job.network, len(opened.classes), job.weights).to(device)
    pretrained = pretrained_head(network, job.network, job.weights)
    augment, everything = Augment(size=job.size, mean=mean, std=std), np.arange(len(opened))
    ids, rows, labels, small = extract_features(job, opened, everything, augment, network, has_bf16(device))
    present, targets = torch.unique(labels, return_inverse=True)
    if len(present) < 2:
        raise PackError(f"{opened.path} has images of 1 class; expected at least 2 to tell apart")
    contents = hash_contents(opened, ids)
    folds = assign_folds(opened.labels[ids], contents, job.folds, find_alike(opened, ids, small))
    found = linear_probe.out_of_fold(rows, targets, torch.from_numpy(folds).to(device), pretrained)
    probabilities = np.zeros((len(ids), len(opened.classes)))
    probabilities[:, present.numpy(force=True)] = found.probabilities.double().numpy(force=True)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    judge = f"a linear probe of {job.network} at {job.size} pixels, {job.folds} folds, {found}"
    known = labels.numpy(force=True), probabilities, rows.numpy(force=True)
    return Evidence(judge, opened, ids, *known, contents)


def judge_by_run(job: Job, opened: Pack) -> Evidence:
    """A trained run, on the images of the splits that it was not trained on."""
    assert job.run
    *_, device = open_device(job.resources)
    ids = np.sort(np.concatenate([opened.ids("val"), opened.ids("test")]))
    if not len(ids):
        why = "a run cannot judge what it was trained on; review without --run"
        raise PackError(f"{opened.path} has no images in its splits val and test, and {why}")
    folder = Run(job.run)
    origin, network = folder.network(job.checkpoint, device)
    bf16 = folder.read(RECIPE)["precision"] == "bf16" and has_bf16(device)
    ids, rows, labels, _ = extract_features(job, opened, ids, recipe_augment(folder), network, bf16)
    try:
        logits = linear_probe.classifier(network)(rows)
    except ValueError as error:
        raise RunError(f"{job.run}: {error}; review without --run") from None
    if not torch.isfinite(logits).all():
        raise RunError(f"{job.run}, checkpoint {origin['checkpoint']}: the network's logits are not finite")
    judge = f"{job.run}, checkpoint {origin['checkpoint']}, on its splits val and test"
    probabilities = logits.double().softmax(1).numpy(force=True)
    known = labels.numpy(force=True), probabilities, rows.numpy(force=True)
    return Evidence(judge, opened, ids, *known, hash_contents(opened, ids))


@torch.no_grad()
def extract_features(
    job: Job, opened: Pack, ids: Ids, augment: Augment, network: nn.Module, bf16: bool
) -> tuple[Ids, torch.Tensor, torch.Tensor, NDArray[np.uint8]]:
    """Of the rows `ids` those that are valid, int64 `[n]`; what the last layer sees of their centre windows,
    float32 `[n, D]`; their labels, int64 `[n]`; and the windows as thumbnails, `[n, 16, 16, 3]`.
    """
    small = [np.empty((0, THUMBNAIL, THUMBNAIL, 3), np.uint8)]
    with (
        Loader(opened, augment.centre(), ids, job.resources, epochs=1) as loader,
        progress_bar("looking with the network") as update,
    ):
        note(loader.describe_corrupt())

        def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
            for batch in loader:
                shrunk = nn.functional.adaptive_avg_pool2d(batch.images.float(), THUMBNAIL)
                small.append(augment.to_pixels(shrunk.numpy(force=True)))
                yield *batch.flat(), batch.ids
                update(loader.position.images, len(ids))

        inference = fuse_conv_bn(features_of(network), augment.size)
        rows, labels, valid = linear_probe.features(inference, batches(), bf16)
    return valid.numpy(), rows.clone(), labels, np.concatenate(small)


def find_alike(opened: Pack, ids: Ids, small: NDArray[np.uint8]) -> list[Pair]:
    """Near twins by their places among `ids`, found as the survey does, in thumbnails `small`."""
    chosen = np.flatnonzero(opened.sizes[ids].min(axis=1) >= DETAILED)
    pairs = find_pairs(small[chosen])
    return [replace(pair, one=int(chosen[pair.one]), other=int(chosen[pair.other])) for pair in pairs]


def assign_folds(
    labels: NDArray[np.int32], contents: Sequence[str], folds: int, alike: Sequence[Pair] = ()
) -> Ids:
    """A fold for every image, int64 `[n]`: dealt out class by class; twins, exact and near, are in one fold.

    Otherwise twins would judge each other. Where more than half of a class are twins, only exact copies stay
    together: with all of the class in one fold, nothing would be left to know it by.
    """
    _, first, content = np.unique(contents, return_index=True, return_inverse=True)
    copies = first[content]
    groups = Twins(copies, tuple(alike)).groups()
    large = np.bincount(groups, minlength=len(labels)) > np.bincount(labels)[labels] / 2
    together = np.where(large[groups], copies, groups)
    _, first, group = np.unique(together, return_index=True, return_inverse=True)
    fold = np.empty(len(first), dtype=np.int64)
    fold[np.argsort(labels[first], kind="stable")] = np.arange(len(first)) % folds
    return fold[group]


def hash_contents(opened: Pack, ids: Ids) -> list[str]:
    """The sha256 of each image's bytes."""
    return [hashlib.sha256(opened.encoded(index).data).hexdigest() for index in ids.tolist()]


def rank(evidence: Evidence) -> list[Ranked]:
    """Every image, the least likely label first. Confident learning counts how many are issues."""
    from cleanlab.count import num_label_issues
    from cleanlab.rank import get_label_quality_scores

    labels, probabilities = evidence.labels, evidence.probabilities
    scores = get_label_quality_scores(labels, probabilities, method="self_confidence")
    count = int(num_label_issues(labels, probabilities))
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -1
    classes, paths = evidence.pack.classes, evidence.paths
    return [
        Ranked(
            path=paths[row],
            label=classes[labels[row]],
            likelier=classes[others[row].argmax()],
            probability=float(scores[row]),
            likelier_probability=float(others[row].max()),
            is_issue=place < count and bool(others[row].max() > scores[row]),
            sha256=evidence.contents[row],
        )
        for place, row in enumerate(np.argsort(scores, kind="stable").tolist())
    ]


def with_neighbours(ranking: Sequence[Ranked], evidence: Evidence, count: int) -> list[Ranked]:
    """The ranking, with the `count` nearest images of both classes beside every label issue."""
    paths = evidence.paths
    rows = {path: row for row, path in enumerate(paths)}
    lengths = np.linalg.norm(evidence.features, axis=1, keepdims=True)
    directions = evidence.features / np.maximum(lengths, np.finfo(np.float32).tiny)

    def nearest(row: int, name: str) -> tuple[Neighbour, ...]:
        members = np.flatnonzero(evidence.labels == evidence.pack.classes.index(name))
        members = members[members != row]
        cosines = directions[members] @ directions[row]
        order = np.argsort(-cosines, kind="stable")[:count]
        return tuple(Neighbour(paths[members[place]], float(cosines[place])) for place in order)

    def with_nearest(image: Ranked) -> Ranked:
        row = rows[image.path]
        return replace(image, of_label=nearest(row, image.label), of_likelier=nearest(row, image.likelier))

    return [with_nearest(image) if image.is_issue else image for image in ranking]


def with_saliency(job: Job, ranking: Sequence[Ranked], evidence: Evidence) -> list[Ranked]:
    """The ranking, with a picture beside every label issue of where the run looks."""
    assert job.run
    rows = dict(zip(evidence.paths, evidence.ids.tolist(), strict=True))
    issues = [rows[image.path] for image in ranking if image.is_issue]
    if not issues:
        return list(ranking)
    *_, device = open_device(job.resources)
    folder = Run(job.run)
    _, network = folder.network(job.checkpoint, device)
    augment = recipe_augment(folder).centre()
    maps: dict[str, str] = {}
    with Loader(evidence.pack, augment, np.array(issues), job.resources, batch_size=16, epochs=1) as loader:
        for batch in loader:
            heats = normalise(saliency(network, batch.images, batch.labels).gradient)
            pixels = augment.to_pixels(batch.images.numpy(force=True))
            for index, image, heat in zip(batch.ids.tolist(), pixels, heats, strict=True):
                jpeg = io.BytesIO()
                Image.fromarray(figures.overlay(image, heat)).save(jpeg, "JPEG", quality=80)
                maps[evidence.pack.image_path(index)] = base64.b64encode(jpeg.getvalue()).decode()
    return [replace(image, saliency=maps.get(image.path, "")) for image in ranking]


if __name__ == "__main__":
    run(lambda: main(JOB))
