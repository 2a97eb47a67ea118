"""A trained run, opened to look at images: its network, what it saw in training, its temperature.

Before it: a run folder. After it: eval, predict, export, serve and Python's calls use what was opened;
explain, which needs gradients, opens its own.
"""

from __future__ import annotations

import tempfile
import threading
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import tee
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from greyhound.cache.cli import from_json, note, progress_bar
from greyhound.cache.errors import UserError
from greyhound.cache.folder import NO_LABEL, Sample
from greyhound.cache.pack import write_all
from greyhound.cache.scan import ImageInfo, scan
from greyhound.cache.store import Pack, PackError
from greyhound.model import calibration, distributed, precision
from greyhound.model.run import CALIBRATION, PACK, RECIPE, CheckpointName, Run, RunError, read_checked
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Loader, choose
from greyhound.prediction import ImageFile, Prediction, error_of
from greyhound.session import EVALUATED, open_device, open_own_pack

FIRST: Final = 64
CHUNK: Final = 512
"""Files that are packed and looked at together: the first, so that their rows come soon, and the others."""
CHUNK_BYTES: Final = 128 << 20
"""Bytes of images, as they are packed, after which a chunk ends. A guess."""


@dataclass(frozen=True)
class Crops:
    """What of each image is looked at. count: random crops, from `seed`; 1: the window in the centre.

    batch_size: crops in a forward pass; None: as many as are fast.
    """

    count: int = 1
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a count below 1. Raises ValueError."""
        if self.count < 1:
            raise ValueError(f"crops is {self.count}; expected at least 1")


CENTRE: Final = Crops()


@dataclass(frozen=True)
class Trained:
    """A trained run, opened to look at images with.

    origin: which checkpoint, after what, its `weights_id`. network: on `device`, in evaluation mode, its
    BatchNorm fused. augment: the recipe's. background: a colour, under what is transparent.
    """

    run: Run
    origin: dict[str, Any]
    network: nn.Module
    augment: Augment
    classes: tuple[str, ...]
    background: str
    bf16: bool
    device: torch.device

    def logits(
        self, pack: Pack, ids: NDArray[np.int64], resources: Resources, crops: Crops = CENTRE
    ) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
        """Batch by batch: rows of the pack, int64 `[n]`, and their crops' logits, float32 `[n, crops, K]`.

        Of several ranks, each sees its share. An image that cannot be read is left out where
        resources.on_corrupt is "skip". Raises PackError, StreamError.
        """
        batch_size = crops.batch_size or EVALUATED[choose(resources.engine, resources.device)[1]]
        loader = Loader(
            pack,
            self.augment.crops() if crops.count > 1 else self.augment.centre(),
            ids,
            resources,
            batch_size=max(1, batch_size // crops.count) * distributed.world_size(),
            seed=crops.seed,
            views=crops.count,
            epochs=1,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        with torch.no_grad(), loader:
            distributed.on_main(note, loader.describe_corrupt())
            for batch in loader:
                found = precision.forward(self.network, batch.flat()[0], self.bf16)
                yield batch.ids.numpy(), found.view(len(batch.ids), crops.count, found.shape[-1])


def collect(
    batches: Iterable[tuple[NDArray[np.int64], torch.Tensor]], total: int, title: str = "evaluating"
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """The rows and logits of all batches and ranks, on rank 0, in the order of the rows, in host memory.

    total: images, for the progress bar of this title.
    """
    parts, rows, done = [], [], 0
    with progress_bar(title, distributed.is_main()) as update:
        for some, logits in batches:
            parts.append(logits)
            rows.append(torch.from_numpy(some))
            done += len(some) * distributed.world_size()
            update(min(done, total), total)
    found, logits = distributed.gather(torch.cat(rows)), distributed.gather(torch.cat(parts)).cpu()
    order = found.argsort()
    return found[order].numpy(), logits[order]


def open_trained(run: Run, checkpoint: CheckpointName, resources: Resources) -> Trained:
    """A trained run, on the device of `resources`. Raises RunError, CheckpointError, ResourcesError."""
    packed, augment = run.read(PACK), recipe_augment(run)
    *_, device = open_device(resources)
    origin, network = run.network(checkpoint, device)
    return Trained(
        run,
        origin,
        precision.fuse_conv_bn(network, augment.size),
        augment,
        tuple(packed["classes"]),
        packed["background"],
        run.read(RECIPE)["precision"] == "bf16" and precision.has_bf16(device),
        device,
    )


def recipe_augment(run: Run) -> Augment:
    """What the run was trained with. Raises RunError, ValueFormatError."""
    return from_json(Augment, run.read(RECIPE)["augment"], f"{run.folder / RECIPE}, augment")


def open_calibrated(
    folder: Path, checkpoint: CheckpointName, resources: Resources, pack: Path | None, crops: int = 1
) -> tuple[Trained, calibration.Temperature]:
    """`open_trained`, and the `temperature`, to which corrupt validation images add nothing."""
    trained = open_trained(Run(folder), checkpoint, resources)
    return trained, temperature(trained, crops, replace(resources, on_corrupt="skip"), pack)


def temperature(
    trained: Trained, crops: int, resources: Resources, pack: Path | None = None
) -> calibration.Temperature:
    """What makes the probabilities of so many crops mean what they say; 1, with the reason, where none can.

    It is fitted to the validation split of the run's pack (`pack`: where that is now), and kept in the run
    folder. Raises PackError for a corrupt image, unless resources.on_corrupt is "skip"; and RunError.
    """
    known = distributed.broadcast_from_main(lambda: _known_temperature(trained, crops))
    return known or _fit_temperature(trained, crops, resources, pack)


def _known_temperature(trained: Trained, crops: int) -> calibration.Temperature | None:
    """The one in the run folder, or that there cannot be one."""
    if why := calibration.too_few(images := trained.run.read(PACK).get("splits", {}).get("val", 0)):
        return calibration.Temperature(images=images, why=why)
    wanted = {"weights": trained.origin["weights"], "crops": crops}
    for row in _temperatures(trained.run):
        if wanted.items() <= row.items() and (row.get("temperature") or 0) > 0:
            return calibration.Temperature(row["temperature"], row.get("images") or 0, row.get("why") or "")
    return None


def _temperatures(run: Run) -> list[dict[str, Any]]:
    """The rows of calibration.json. Raises RunError."""
    try:
        rows: list[dict[str, Any]] = read_checked(run.folder / CALIBRATION, "delete it; it is made again")
    except FileNotFoundError:
        return []
    return rows


def _fit_temperature(
    trained: Trained, crops: int, resources: Resources, path: Path | None
) -> calibration.Temperature:
    """The temperature of the validation images, which the run folder keeps where it can be written."""
    try:
        pack = open_own_pack(trained.run, path, resources)
    except (PackError, RunError) as error:
        return calibration.Temperature(why=str(error))
    try:
        asked = pack.ids("val")
        batches = trained.logits(pack, asked, resources, Crops(crops))
        ids, logits = collect(batches, len(asked), "fitting the temperature")
    except PackError:
        if resources.on_corrupt != "skip":
            raise
        return calibration.Temperature(why="no validation image can be read, so none can be fitted")
    if not distributed.is_main():
        return calibration.Temperature()
    fitted = calibration.fit(logits, pack.labels[ids].astype("int64"))
    row = {"weights": trained.origin["weights"], "crops": crops, **vars(fitted)}
    try:
        trained.run.write(CALIBRATION, [*_temperatures(trained.run), row])
    except RunError as error:
        note(f"the temperature is not kept: {error}")
    return fitted


@dataclass(frozen=True)
class Chunk:
    """Some of the files. errors: why each is not in the pack, "" where it is. pack: None where none is."""

    images: list[ImageFile]
    errors: list[str]
    pack: Path | None


def predict(
    trained: Trained,
    images: Iterable[ImageFile],
    resources: Resources,
    crops: Crops = CENTRE,
    temperature: float = 1.0,
) -> Generator[Prediction]:
    """A prediction of every file, in order, as soon as it is known; close it to end early.

    While the network looks at a chunk of the files, packed for that time, the next chunk is scanned.
    Raises ScanError, PackError, StreamError, and UserError where the network has diverged.
    """
    stop = threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="greyhound-") as folder,
        ThreadPoolExecutor(1) as pool,
        closing(_chunks(trained, images, resources, Path(folder), stop)) as chunks,
    ):
        pool.submit(int).result()  # from here on, shutdown waits for its thread, wherever a signal comes
        try:
            coming = pool.submit(next, chunks, None)
            while (chunk := coming.result()) is not None:
                coming = pool.submit(next, chunks, None)
                found = _look(trained, chunk, resources, crops, temperature)
                for each, error in zip(chunk.images, chunk.errors, strict=True):
                    yield Prediction(each, error=error) if error else Prediction(each, next(found))
                found.close()
                if chunk.pack:
                    chunk.pack.unlink()
        finally:
            stop.set()
            pool.shutdown()


def _look(
    trained: Trained, chunk: Chunk, resources: Resources, crops: Crops, temperature: float
) -> Generator[NDArray[np.float64]]:
    """The probabilities of the files in a chunk's pack, `[K]` each, in order."""
    if chunk.pack is None:
        return
    pack = Pack(chunk.pack)
    for _, logits in trained.logits(pack, pack.ids("test"), resources, crops):
        if not torch.isfinite(logits).all():
            what = f"{trained.run.folder}, checkpoint {trained.origin['checkpoint']}"
            raise UserError(f"{what}: the network's logits are not finite; train again")
        yield from calibration.probabilities(logits, temperature)


def _chunks(
    trained: Trained, images: Iterable[ImageFile], resources: Resources, folder: Path, stop: threading.Event
) -> Generator[Chunk]:
    """The files, scanned and packed, chunk by chunk, until the stop."""
    files, ahead = tee(images)
    dali = choose(resources.engine, resources.device)[0] == "dali"
    infos = scan((each.file for each in ahead), background=trained.background, dali=dali)
    rows, size, count = list[tuple[ImageFile, ImageInfo]](), 0, 0
    with closing(infos):
        for row in zip(files, infos, strict=True):
            if stop.is_set():
                return
            rows.append(row)
            size += 3 * row[1].width * row[1].height if row[1].transcode else row[1].bytes
            if len(rows) >= (CHUNK if count else FIRST) or size > CHUNK_BYTES:
                yield pack_chunk(trained, rows, folder / f"{count}.arrow")
                rows, size, count = [], 0, count + 1
    if rows:
        yield pack_chunk(trained, rows, folder / f"{count}.arrow")


def pack_chunk(trained: Trained, rows: Sequence[tuple[ImageFile, ImageInfo]], out: Path) -> Chunk:
    """Pack the files that can be read. One that has changed since its scan cannot."""
    errors = [error_of(*row) for row in rows]
    while sound := [place for place, error in enumerate(errors) if not error]:
        sources = [Sample(rows[place][0].file, str(place), NO_LABEL) for place in sound]
        try:
            infos = [rows[place][1] for place in sound]
            write_all(sources, trained.classes, out, trained.background, infos)
            break
        except PackError:
            changed = [place for place in sound if not _is_as_scanned(*rows[place])]
            if not changed:
                raise
            for place in changed:
                errors[place] = "unreadable (it changed while it was read)"
    return Chunk([each for each, _ in rows], errors, out if sound else None)


def _is_as_scanned(image: ImageFile, info: ImageInfo) -> bool:
    try:
        return zlib.crc32(image.file.read_bytes()) == info.crc32
    except OSError:
        return False
