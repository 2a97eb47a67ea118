"""Loader: pack + order + augment + engine -> batches on the device, one endless stream.

Before it: the pack, and the pure functions that say what each batch is. After it: train, eval and explain. The
engine and the device are chosen here and nowhere else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from greyhound.cache.machine import available_cores
from greyhound.cache.store import Pack, PackError, Residency
from greyhound.cache.validate import available
from greyhound.pipelines import dali, threads
from greyhound.pipelines.augment import Augment, draw, halvings, to_stored
from greyhound.pipelines.order import epoch_order, even_bounds, full_bounds, share
from greyhound.pipelines.request import Device, Engine, Request, ResourcesError, Settings
from greyhound.pipelines.tier import EngineChosen, Plan, Tier, TierName, default_budget, parse_bytes, plan
from greyhound.pipelines.upload import Upload
from greyhound.pipelines.watch import watched

EngineName = Literal["auto", "dali", "threads"]
DeviceName = Literal["auto", "gpu", "cpu"]
BadPolicy = Literal["error", "skip"]

ENGINES: Final[dict[str, Engine]] = {"dali": dali.stream, "threads": threads.stream}


class DeviceError(ResourcesError):
    """The engine or device that was asked for does not exist on this machine."""


@dataclass(frozen=True)
class Resources:
    """What a stream runs on; no pixel depends on it beyond the engines' tolerance."""

    engine: EngineName = "auto"
    """auto: DALI on a GPU, threads without one."""
    device: DeviceName = "auto"
    """gpu, cpu, or whichever is there."""
    threads: int | None = None
    """Loader threads; default one a core."""
    prefetch: int = 2
    """Batches prepared ahead."""
    residency: Residency = "mmap"
    """Where the originals lie; mmap: in the page cache, which processes share; ram: in a private copy of each process."""
    tier: TierName = "auto"
    """decoded: decode each original once, keep its pixels; encoded: never; auto: as the budget allows, by threads alone."""
    on_bad: BadPolicy = "error"
    """Images of the pack that are damaged: error stops; skip finds them all at the start, trains on others of their
    classes in their place, evaluates without them, and says so."""
    budget: str = ""
    """Memory for decoded originals, such as 4GB; default: half of what is free."""
    patience: float = 600.0
    """Seconds without a batch after which the loader is taken to hang, and the program ends; 0: it waits for ever."""

    def __post_init__(self) -> None:
        """Refuse what no loader could do."""
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}; expected at least 1")
        if self.prefetch < 1:
            raise ValueError(f"prefetch is {self.prefetch}; expected at least 1")
        if not 0 <= self.patience < math.inf:
            raise ValueError(f"patience is {self.patience}; expected 0 or more")
        if self.budget:
            parse_bytes(self.budget)

    def shared(self, processes: int) -> Resources:
        """What one of so many processes on this machine runs on: they divide its cores and its free memory."""
        if processes == 1:
            return self
        threads = self.threads or max(1, available_cores() // processes)
        return replace(self, threads=threads, budget=self.budget or f"{default_budget() // processes}B")


@dataclass(frozen=True)
class Batch:
    """images: float32 `[B, 3, S, S]` in channels_last memory, `[B, K, 3, S, S]` for K > 1 views; ids: int64 `[B]`,
    rows of the pack, in host memory; labels: int64 `[B]`, on the images' device. whole: images of the batch over all
    ranks.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    whole: int

    def flat(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Every view as an image of its own: float32 `[B * K, 3, S, S]`, and its label, int64 `[B * K]`."""
        views = self.images.shape[1] if self.images.ndim == 5 else 1
        return self.images.flatten(0, -4), self.labels.repeat_interleave(views)


@dataclass(frozen=True)
class Position:
    """Where a stream stands: an epoch, and how many images of it are done. With the seed, all there is to resume."""

    epoch: int = 0
    images: int = 0


def automatic(gpu: bool, dali: bool) -> EngineChosen:
    """The engine where none is named: DALI on a GPU, threads without one."""
    return "dali" if gpu and dali else "threads"


def choose(engine: EngineName = "auto", device: DeviceName = "auto") -> tuple[EngineChosen, Device]:
    """The one place where engine and device are chosen.

    Raises DeviceError for a GPU or an engine that is not there.
    """
    if device == "gpu" and not torch.cuda.is_available():
        raise DeviceError("device gpu: torch finds no CUDA GPU here; use --device cpu, or auto")
    if engine == "dali" and not available():
        raise DeviceError(
            "engine dali: DALI is not installed; pip install nvidia-dali-cuda120, or use --engine threads"
        )
    gpu = device != "cpu" and torch.cuda.is_available()
    if engine == "auto":
        engine = automatic(gpu, available())
    return engine, "gpu" if gpu else "cpu"


def torch_device(device: Device) -> torch.device:
    """Torch's name for it."""
    return torch.device("cuda" if device == "gpu" else "cpu")


class Loader:
    """An endless stream of batches. Owns the engine's threads and memory: close it, or use it in a `with`."""

    def __init__(
        self,
        pack: Pack,
        augment: Augment,
        ids: NDArray[np.int64],
        resources: Resources = Resources(),
        *,
        batch_size: int = 64,
        shuffle: bool = False,
        seed: int = 0,
        views: int = 1,
        epochs: int | None = None,
        start: Position = Position(),
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """Open a stream over the rows `ids` of `pack`.

        batch_size: images, over all ranks; 1 <= batch_size. shuffle: a new order every epoch and batches of nearly
        equal size (training); without it the rows in their order and a short last batch (evaluation). views: K,
        augmentations of each image in a batch. epochs: end after so many; endless without. start: resume there. Of
        `ids` those that are damaged, where resources.on_bad is "skip", are replaced in training and left out in
        evaluation; `damaged` has them. Raises ResourcesError, ValueError, PackError.
        """
        _check(len(pack), ids, {"batch_size": batch_size, "views": views, "ranks": ranks}, rank)
        self.engine, self.device = choose(resources.engine, resources.device)
        pack.make_resident()
        self.pack, self.augment, self.ids = pack, augment, np.asarray(ids, dtype=np.int64)
        self.damaged = np.array(pack.corrupt(self.ids) if resources.on_bad == "skip" else [], dtype=np.int64)
        if not shuffle:
            self.ids = self.ids[~np.isin(self.ids, self.damaged)]
        self._standing_in = stand_ins(pack.labels, self.ids, self.damaged)
        self.resources, self.shuffle, self.seed, self.views = resources, shuffle, seed, views
        self.batch_size, self.rank, self.ranks = batch_size, rank, ranks
        self.position = start
        self.plan = self._plan(resources, epochs)
        tier = Tier(pack, self.plan.kept, halvings(augment, pack.sizes))
        settings = Settings(
            size=augment.size,
            fill=augment.fill,
            views=views,
            batch_size=-(-min(batch_size, len(ids)) // ranks),
            threads=resources.threads or available_cores(),
            prefetch=resources.prefetch,
            device=self.device,
            tier=tier,
        )
        if self.engine == "dali":  # which decodes nothing for later; here, where it may take its time
            with pack.naming_corrupt(self.ids):
                tier.fill(settings.threads)
        self._upload = Upload(torch_device(self.device))
        engine = ENGINES[self.engine](pack, self._requests(start, epochs), settings)
        consumer = torch.cuda.current_stream() if self.device == "gpu" else None
        self._stream = watched(engine, resources.patience, consumer)

    def __enter__(self) -> Loader:
        """The loader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the engine's threads and free its memory; batches that were handed out stay valid."""
        self._stream.close()

    def __len__(self) -> int:
        """Batches in one whole epoch."""
        return -(-len(self.ids) // self.batch_size)

    def batch_sizes(self) -> list[int]:
        """Images of this rank's batches, each number once: two that differ by one at most, but for a short last batch."""
        bounds = (even_bounds if self.shuffle else full_bounds)(len(self.ids), self.batch_size, 0)
        wholes = np.unique([high - low for low, high in bounds])
        return [size for size in np.unique(-(-(wholes - self.rank) // self.ranks)).tolist() if size]

    def __iter__(self) -> Iterator[Batch]:
        """All the batches to come, across epochs."""
        for request, images in self._stream:
            before = self.position.images if self.position.epoch == request.epoch else 0
            self.position = Position(request.epoch, request.stop)
            yield self._batch(request, images, request.stop - before)

    def epoch(self) -> Iterator[Batch]:
        """The rest of the epoch that `position` is in; a whole one when it stands at a boundary."""
        for batch in self:
            if self.position.images == len(self.ids):
                self.position = Position(self.position.epoch + 1)
                yield batch
                return
            yield batch

    def again(self, start: Position) -> Loader:
        """The same stream from another place on, all ranks' part of it, as a loader of its own: for a look back.

        It keeps nothing decoded.
        """
        return Loader(
            self.pack,
            self.augment,
            self.ids,
            replace(self.resources, tier="encoded"),
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            seed=self.seed,
            views=self.views,
            start=start,
        )

    def request(self, epoch: int, ids: NDArray[np.int64], stop: int = 0) -> Request:
        """What the rows `ids` look like in `epoch`: pure, and the answer to "show me image 1204 as epoch 37 saw it"."""
        sizes, shape = self.pack.sizes[ids], (len(ids), self.views)
        every = np.repeat(np.arange(len(ids)), self.views)  # each image as often as it has views
        view = np.tile(np.arange(self.views), len(ids))
        lumas = self.pack.mean_lumas[ids[every]]
        geometry, colour = draw(self.augment, self.seed, epoch, ids[every], sizes[every], view, lumas)
        halved = halvings(self.augment, sizes)
        stored = to_stored(geometry.reshape(*shape, 3, 3), sizes, self.pack.orientations[ids], halved)
        return Request(
            ids=ids,
            geometry=stored,
            colour=colour.reshape(*shape, 3, 4),
            halvings=halved,
            epoch=epoch,
            stop=stop,
        )

    def _requests(self, start: Position, epochs: int | None) -> Iterator[Request]:
        """Every batch from `start` on; engines read ahead of what was handed out, so this does not touch `position`."""
        cut = even_bounds if self.shuffle else full_bounds
        numbers = itertools.count(start.epoch) if epochs is None else range(start.epoch, start.epoch + epochs)
        for epoch in numbers:
            order = epoch_order(self.ids, self.seed, epoch) if self.shuffle else self.ids
            order = self._standing_in[order] if len(self.damaged) else order
            done = start.images if epoch == start.epoch else 0
            for low, high in cut(len(order), self.batch_size, done):
                yield self.request(epoch, share(order[low:high], self.rank, self.ranks), high)

    def _plan(self, resources: Resources, epochs: int | None) -> Plan:
        """What to keep decoded."""
        budget = parse_bytes(resources.budget) if resources.budget else None
        rows = np.unique(self._standing_in[self.ids])
        halved = halvings(self.augment, self.pack.sizes[rows])
        return plan(resources.tier, self.pack, rows, halved, budget, epochs, self.engine)

    def describe_damaged(self) -> str:
        """What became of the damaged images, in a line; empty where there are none."""
        if not len(self.damaged):
            return ""
        first, count = self.pack.describe(self.damaged[0]), len(self.damaged)
        others = f" and {count - 1} more are" if count > 1 else " is"
        fate = "others stand in, of the same class where it has one" if self.shuffle else "left out"
        return f"{self.pack.path}: {first}{others} damaged; {fate}"

    def damage(self) -> list[dict[str, Any]]:
        """The damaged images, each by row and path, and the row that stands in for it; where they are left out, None."""
        return [
            {
                "row": row,
                "path": self.pack.image_path(row),
                "stand_in": int(self._standing_in[row]) if self.shuffle else None,
            }
            for row in self.damaged.tolist()
        ]

    def _batch(self, request: Request, images: torch.Tensor, whole: int) -> Batch:
        images = images.permute(0, 1, 4, 2, 3)
        labels = torch.from_numpy(self.pack.labels[request.ids].astype(np.int64))
        return Batch(
            images=self._upload(images[:, 0] if self.views == 1 else images),
            labels=self._upload(labels.pin_memory() if self.device == "gpu" else labels),
            ids=torch.from_numpy(request.ids),
            whole=whole,
        )


def stand_ins(
    labels: NDArray[np.int32], ids: NDArray[np.int64], damaged: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The row that stands in for each row of a pack: itself, or for a damaged one the next sound one of its class.

    labels: int32 `[rows]`. ids: the rows of the stream. The next one counts upwards and begins again after the last; a
    class without a sound row takes the next one of any. Returns int64 `[rows]`. Raises PackError where all are damaged.
    """
    found = np.arange(len(labels))
    sound = np.setdiff1d(ids, damaged)
    if not len(sound):
        raise PackError(f"all of the {len(ids)} images asked for are damaged; pack the images again")
    for row in damaged.tolist():
        alike = sound[labels[sound] == labels[row]]
        among = alike if len(alike) else sound
        found[row] = among[np.searchsorted(among, row) % len(among)]
    return found


def _check(rows: int, ids: NDArray[np.int64], counts: dict[str, int], rank: int) -> None:
    """Refuse a stream that cannot be: of a pack of `rows` rows, with `counts` that must be at least 1."""
    for name, value in {**counts, "images": len(ids)}.items():
        if value < 1:
            raise ValueError(f"loader: {name} is {value}; expected at least 1")
    if not 0 <= rank < counts["ranks"]:
        raise ValueError(f"loader: rank is {rank}; expected 0 to {counts['ranks'] - 1}")
    low, high = np.min(ids), np.max(ids)
    if low < 0 or high >= rows:
        raise ValueError(f"loader: ids go from {low} to {high}; the pack has rows 0 to {rows - 1}")
