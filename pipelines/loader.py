"""Loader: pack + order + augment + engine -> batches on the device, one endless stream.

Before it: the pack, and the pure functions that say what each batch is. After it: train, eval and explain.
The engine and the device are chosen here and nowhere else.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from greyhound.cache.machine import available_cores, has_dali
from greyhound.cache.store import Pack, PackError
from greyhound.pipelines import dali, threads
from greyhound.pipelines.augment import Augment, draw, log2_reduction, to_stored
from greyhound.pipelines.decoded import ImageCache, plan
from greyhound.pipelines.engine import (
    BatchSpec,
    Device,
    DeviceError,
    DeviceName,
    Engine,
    EngineChosen,
    EngineConfig,
    EngineName,
    Resources,
    ToDevice,
    WithTimeout,
    parse_bytes,
)
from greyhound.pipelines.mixing import draw_mixing, mix, shares_of
from greyhound.pipelines.order import even_bounds, full_bounds, order_at, rank_share

DEFAULT: Final = Resources()
ENGINES: Final[dict[str, Engine]] = {"dali": dali.stream, "threads": threads.stream}


@dataclass(frozen=True)
class Batch:
    """images: float32 `[B, 3, S, S]`, `[B, K, 3, S, S]` for K > 1 views, channels_last, on the device.

    labels: int64 `[B]`, on the device. ids: int64 `[B]`, rows of the pack, in host memory. global_batch_size:
    images of the batch over all ranks. weights: float32 `[B]`, on the device, where the loader has them.
    shares: float32 `[B, K]`, on the device: of each view, how much is of the image before it, where they are
    mixed; see `mixing`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    global_batch_size: int
    weights: torch.Tensor | None = None
    shares: torch.Tensor | None = None

    def flat(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Every view as an image of its own: float32 `[B * K, 3, S, S]`, and its label, int64 `[B * K]`."""
        return self.images.reshape(-1, *self.images.shape[-3:]), self._of_views(self.labels)

    def examples(self) -> tuple[torch.Tensor, ...]:
        """`flat`, and the weight of every view, float32 `[B * K]`, where the loader has weights.

        Of mixed images, always: the weight times what is its own, then the labels of the images mixed in,
        int64 `[B * K]`, and their weights times their shares. A view's loss is the sum of both labels' own.
        """
        if self.shares is None:
            return self.flat() if self.weights is None else (*self.flat(), self._of_views(self.weights))
        shares, others = self.shares.flatten(), self._of_views(self.labels.roll(1))
        if self.weights is None:
            return *self.flat(), 1 - shares, others, shares
        weights, their = self._of_views(self.weights), self._of_views(self.weights.roll(1))
        return *self.flat(), weights * (1 - shares), others, their * shares

    def _of_views(self, values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(self.images.shape[1] if self.images.ndim == 5 else 1)


@dataclass(frozen=True)
class Position:
    """Where a stream stands: an epoch, and how many images of it are done; with the seed, all to resume."""

    epoch: int = 0
    images: int = 0


def choose(engine: EngineName = "auto", device: DeviceName = "auto") -> tuple[EngineChosen, Device]:
    """The one place where engine and device are chosen.

    Raises DeviceError for a GPU or an engine that is not there.
    """
    if device == "gpu" and not torch.cuda.is_available():
        raise DeviceError("device gpu: torch finds no CUDA GPU here; use --device cpu, or auto")
    if engine == "dali" and not has_dali():
        remedy = "pip install nvidia-dali-cuda120, or use --engine threads"
        raise DeviceError(f"engine dali: DALI is not installed; {remedy}")
    gpu = device != "cpu" and torch.cuda.is_available()
    if engine == "auto":
        engine = "dali" if gpu and has_dali() else "threads"
    return engine, "gpu" if gpu else "cpu"


def torch_device(device: Device) -> torch.device:
    """Torch's name for it."""
    return torch.device("cuda" if device == "gpu" else "cpu")


class Loader:
    """An endless stream of batches: an iterator across epochs, or `epoch` by epoch.

    It owns the engine's threads and memory: close it, or use it in a `with`. data_time: seconds spent waiting
    for batches so far. images_done: images of all ranks so far.
    """

    def __init__(
        self,
        pack: Pack,
        augment: Augment,
        ids: NDArray[np.int64],
        resources: Resources = DEFAULT,
        *,
        batch_size: int = 64,
        shuffle: bool = False,
        seed: int = 0,
        views: int = 1,
        epochs: int | None = None,
        start: Position = Position(),
        rank: int = 0,
        world_size: int = 1,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        """Open a stream over the rows `ids` of `pack`.

        batch_size: images, over all ranks; 1 <= batch_size. shuffle: a new order every epoch and batches of
        nearly equal size (training); without it the rows in their order and a short last batch (evaluation).
        views: K, augmentations of each image in a batch. epochs: end after so many; endless without. start:
        resume there. weights: of every row of the pack, for the batches. Corrupt images, where
        resources.on_corrupt is "skip", are replaced in training and left out in evaluation; `corrupt` has
        them. Raises ResourcesError, ValueError, PackError.
        """
        _check(len(pack), ids, {"batch_size": batch_size, "views": views, "world_size": world_size}, rank)
        _check_draws(seed, start.epoch)
        self.engine, self.device = choose(resources.engine, resources.device)
        pack.make_resident(len(ids))
        self.pack, self.augment, self.ids = pack, augment, np.asarray(ids, dtype=np.int64)
        corrupt = pack.corrupt(self.ids) if resources.on_corrupt == "skip" else []
        self.corrupt, self.weights = np.array(corrupt, dtype=np.int64), weights
        self._replacements = replacements(pack.labels, self.ids, self.corrupt) if corrupt else None
        self.ids = np.sort(self.ids) if shuffle else self.ids[~np.isin(self.ids, self.corrupt)]
        self.resources, self.shuffle, self.seed, self.views = resources, shuffle, seed, views
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.position, self.data_time, self.images_done = start, 0.0, 0
        rows, reduction = self._replaced(self.ids), log2_reduction(augment, pack.stored_sizes)
        nbytes = parse_bytes(resources.cache_bytes) if resources.cache_bytes else None
        self.plan = plan(resources.image_cache, pack, rows, reduction[rows], nbytes, epochs, self.engine)
        config = EngineConfig(
            size=augment.size,
            fill=augment.fill,
            views=views,
            batch_size=-(-min(batch_size, len(ids)) // world_size),
            threads=resources.threads or available_cores(),
            prefetch=resources.prefetch,
            device=self.device,
            image_cache=ImageCache(pack, self.plan.kept, reduction),
        )
        self._to_device = ToDevice(torch_device(self.device))
        engine = ENGINES[self.engine](pack, self._specs(start, epochs), config)
        consumer = torch.cuda.current_stream() if self.device == "gpu" else None
        self._stream = WithTimeout(engine, resources.timeout, consumer)

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
        """Sizes of this rank's batches, each once: two that differ by one, and that of a short last batch."""
        bounds = (even_bounds if self.shuffle else full_bounds)(len(self.ids), self.batch_size, 0)
        wholes = np.unique([high - low for low, high in bounds])
        return [size for size in np.unique(-(-(wholes - self.rank) // self.world_size)).tolist() if size]

    def __iter__(self) -> Iterator[Batch]:
        """All the batches to come, across epochs."""
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises StopIteration after the last epoch, StreamError, PackError."""
        asked = time.perf_counter()
        try:
            spec, images = self._stream.next()
            before = self.position.images if self.position.epoch == spec.epoch else 0
            self.position = Position(spec.epoch, spec.stop)
            self.images_done += spec.stop - before
            return self._batch(spec, images, spec.stop - before)
        finally:
            self.data_time += time.perf_counter() - asked

    def epoch(self) -> Iterator[Batch]:
        """The rest of the epoch that `position` is in. It stands behind each batch before that is yielded."""
        for batch in self:
            last = self.position.images == len(self.ids)
            if last:
                self.position = Position(self.position.epoch + 1)
            yield batch
            if last:
                return

    def again(self, start: Position, augment: Augment | None = None) -> Loader:
        """The stream from another place on, all ranks' part of it; it keeps nothing decoded.

        augment: another one than its own.
        """
        return Loader(
            self.pack,
            augment or self.augment,
            self.ids,
            replace(self.resources, image_cache="encoded"),
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            seed=self.seed,
            views=self.views,
            start=start,
        )

    def spec(self, epoch: int, ids: NDArray[np.int64], stop: int = 0) -> BatchSpec:
        """What the rows `ids` look like in `epoch`: pure; it answers "show image 1204 as epoch 37 saw it"."""
        sizes, shape = self.pack.sizes[ids], (len(ids), self.views)
        every = np.repeat(np.arange(len(ids)), self.views)  # each image as often as it has views
        view = np.tile(np.arange(self.views), len(ids))
        lumas = self.pack.mean_lumas[ids[every]]
        geometry, colour = draw(self.augment, self.seed, epoch, ids[every], sizes[every], view, lumas)
        reduction = log2_reduction(self.augment, self.pack.stored_sizes[ids])
        stored = to_stored(geometry.reshape(*shape, 3, 3), sizes, self.pack.orientations[ids], reduction)
        mixing = draw_mixing(self.augment, self.seed, epoch, ids[every], view) if self.augment.mixes else None
        mixing = None if mixing is None else mixing.reshape(*shape, 2, self.augment.size)
        return BatchSpec(ids, stored, colour.reshape(*shape, 3, 4), reduction, epoch, stop, mixing)

    def _specs(self, start: Position, epochs: int | None) -> Iterator[BatchSpec]:
        """Every batch from `start` on. Engines read ahead, so this does not touch `position`."""
        cut = even_bounds if self.shuffle else full_bounds
        numbers = itertools.count(start.epoch) if epochs is None else range(start.epoch, start.epoch + epochs)
        for epoch in numbers:
            done = start.images if epoch == start.epoch else 0
            for low, high in cut(len(self.ids), self.batch_size, done):
                positions = rank_share(np.arange(low, high), self.rank, self.world_size)
                if self.shuffle:
                    positions = order_at(positions, len(self.ids), self.seed, epoch)
                yield self.spec(epoch, self._replaced(self.ids[positions]), high)

    def _replaced(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return ids if self._replacements is None else self._replacements[ids]

    def describe_corrupt(self) -> str:
        """What became of the corrupt images, in a line; empty where there are none."""
        if not len(self.corrupt):
            return ""
        first, count = self.pack.describe(self.corrupt[0]), len(self.corrupt)
        others = f" and {count - 1} more are" if count > 1 else " is"
        fate = "replaced by others, of the same class where it has one" if self.shuffle else "left out"
        return f"{self.pack.path}: {first}{others} corrupt; {fate}"

    def corrupt_rows(self) -> list[dict[str, Any]]:
        """The corrupt images by row and path, and the row in place of each; None where they are left out."""
        rows = self.corrupt.tolist()
        others = self._replaced(self.corrupt).tolist() if self.shuffle else [None] * len(rows)
        pairs = zip(rows, others, strict=True)
        return [{"row": row, "path": self.pack.image_path(row), "replacement": other} for row, other in pairs]

    def _batch(self, spec: BatchSpec, images: torch.Tensor, global_batch_size: int) -> Batch:
        images, shares = self._to_device(images), None
        if spec.mixing is not None:
            images = mix(images, self._of_rows(spec.mixing))
            shares = self._of_rows(shares_of(spec.mixing))
        images = images.permute(0, 1, 4, 2, 3)
        images = images[:, 0] if self.views == 1 else images
        labels = self._of_rows(self.pack.labels[spec.ids].astype(np.int64))
        weights = None if self.weights is None else self._of_rows(self.weights[spec.ids])
        return Batch(images, labels, torch.from_numpy(spec.ids), global_batch_size, weights, shares)

    def _of_rows(self, values: NDArray[Any]) -> torch.Tensor:
        """On the device."""
        tensor = torch.from_numpy(values)
        return self._to_device(tensor.pin_memory() if self.device == "gpu" else tensor)


class Clock:
    """Where the time of a pass over a loader's batches goes, since the clock was made."""

    def __init__(self, loader: Loader) -> None:
        """Start it."""
        self._loader, self._before = loader, (loader.data_time, loader.images_done)
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Seconds in all."""
        return time.perf_counter() - self._started

    @property
    def data_time(self) -> float:
        """Seconds of waiting for data."""
        return self._loader.data_time - self._before[0]

    @property
    def images(self) -> int:
        """Images of all ranks."""
        return self._loader.images_done - self._before[1]

    def note(self) -> str:
        """Images a second, and the share of the time that went into waiting."""
        seconds = self.seconds()
        return f"{self.images / seconds:.0f} img/s, {self.data_time / seconds:.1%} waiting for data"


def replacements(
    labels: NDArray[np.int32], ids: NDArray[np.int64], corrupt: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The row in the place of each row of a pack: itself, or for a corrupt one the next valid of its class.

    labels: int32 `[rows]`. ids: the rows of the stream. After the last row comes the first; a class without a
    valid row takes the next one of any. Returns int64 `[rows]`. Raises PackError where all are corrupt.
    """
    found = np.arange(len(labels))
    valid = np.sort(ids[~np.isin(ids, corrupt)])  # setdiff1d takes 19 s for 14 million (findings)
    if not len(valid):
        raise PackError(f"all of the {len(ids)} images asked for are corrupt; pack the images again")
    for row in corrupt.tolist():
        alike = valid[labels[valid] == labels[row]]
        among = alike if len(alike) else valid
        found[row] = among[np.searchsorted(among, row) % len(among)]
    return found


def _check_draws(seed: int, epoch: int) -> None:
    """Refuse what the random draws cannot count."""
    for name, value, bits in (("seed", seed, 63), ("epoch", epoch, 32)):
        if not (isinstance(value, Integral) and 0 <= value < 2**bits):
            raise ValueError(f"loader: {name} is {value!r}; expected 0 to 2**{bits} - 1")


def _check(rows: int, ids: NDArray[np.int64], counts: dict[str, int], rank: int) -> None:
    """Refuse a stream that cannot be: of a pack of `rows` rows, with `counts` that must be at least 1."""
    for name, value in {**counts, "images": len(ids)}.items():
        if not (isinstance(value, Integral) and value >= 1):
            raise ValueError(f"loader: {name} is {value!r}; expected at least 1")
    if not 0 <= rank < counts["world_size"]:
        raise ValueError(f"loader: rank is {rank}; expected 0 to {counts['world_size'] - 1}")
    low, high = np.min(ids), np.max(ids)
    if low < 0 or high >= rows:
        raise ValueError(f"loader: ids go from {low} to {high}; the pack has rows 0 to {rows - 1}")
