"""Rows of the benchmark: what each one does with a pack, and what it needs for that.

Before it: a resident pack. After it: `measure` runs each of them against the clock.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Final, Literal

import numpy as np
import torch

from greyhound.cache.errors import UserError
from greyhound.cache.folder import find_unlabelled
from greyhound.cache.machine import has_dali
from greyhound.cache.pack import write_all
from greyhound.cache.store import Pack
from greyhound.pipelines.augment import log2_reduction
from greyhound.pipelines.benchmark import peers
from greyhound.pipelines.benchmark.peers import BATCH_SIZE
from greyhound.pipelines.decoded import ImageCache
from greyhound.pipelines.engine import Device, EngineName, ImageCacheName, Resources
from greyhound.pipelines.loader import Loader

VIEWS: Final = 10

Pass = Callable[[Pack, int], Iterator[int]]
"""Works through a pack without end, on so many threads or workers; yields how many images each batch had."""


class BenchmarkError(UserError, ValueError):
    """Nothing can be measured as asked."""


@dataclass(frozen=True)
class Row:
    """One thing to measure. needs: a module. package: what pip calls it. note: what it does not do.

    warm_up: batches before the clock starts: pools, plugins and prefetching are in place then.
    """

    run: Pass
    kind: Literal["ours", "ceiling", "peer", "packing"]
    needs: str = ""
    package: str = ""
    note: str = ""
    device: Device = "cpu"
    warm_up: int = 3


def decode_only(pack: Pack, workers: int) -> Iterator[int]:
    """The floor: libjpeg-turbo alone, as the engine calls it, on as many threads."""
    none = np.zeros(len(pack), dtype=bool)
    cache = ImageCache(pack, none, log2_reduction(peers.AUGMENT, pack.stored_sizes))

    def decode(rows: Iterator[int]) -> None:
        for row in rows:
            cache.pixels(row)

    with ThreadPoolExecutor(workers) as pool:
        for start in itertools.count(0, BATCH_SIZE):
            rows = iter([row % len(pack) for row in range(start, start + BATCH_SIZE)])  # `next` is atomic
            for task in [pool.submit(decode, rows) for _ in range(workers)]:
                task.result()
            yield BATCH_SIZE


def engine(
    name: EngineName, cache: ImageCacheName = "encoded", views: int = 1, device: Device = "cpu"
) -> Pass:
    """One of ours; with more than one view each view counts."""

    def work(pack: Pack, workers: int) -> Iterator[int]:
        resources, size = Resources(name, device, workers, image_cache=cache), BATCH_SIZE // views
        every = pack, peers.AUGMENT, np.arange(len(pack)), resources
        with Loader(*every, batch_size=size, shuffle=True, views=views) as loader:
            if cache == "decoded":
                for _ in loader.epoch():  # which decodes every image, once
                    pass
            for batch in loader:
                yield len(batch.ids) * views

    return work


def packing(pack: Pack, workers: int) -> Iterator[int]:
    """Pack the originals from files, each _COPIES times, so that the start of the decoders weighs little."""
    with tempfile.TemporaryDirectory(prefix="greyhound-") as folder:
        place = Path(folder)
        for row in range(len(pack)):
            file = place / f"{row}{PurePath(pack.image_path(row)).suffix}"
            file.write_bytes(pack.encoded(row).data)
            for copy in range(1, _COPIES):
                (place / f"{copy}-{file.name}").hardlink_to(file)
        images = find_unlabelled(place)
        while True:
            write_all(images, (), place / "images.arrow")
            yield len(images)


_COPIES: Final = 5
_DALI: Final = ("nvidia.dali", "nvidia-dali-cuda120")
_FROM_SOURCE: Final = "apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++"
_FFCV: Final = ("ffcv", f"ffcv, which is built from source: {_FROM_SOURCE}")
_VIEWS: Final = "each view counts"
_ALBUMENTATIONS: Final = partial(peers.in_workers, peers.albumentations)
_TORCHVISION: Final = partial(peers.in_workers, peers.torchvision_pil)
ROWS: Final[dict[str, Row]] = {
    "decode-only": Row(decode_only, "ceiling", note="ceiling: libjpeg-turbo alone"),
    "threads-encoded": Row(engine("threads"), "ours"),
    "threads-decoded": Row(engine("threads", "decoded"), "ours", note="originals decoded before"),
    "threads-ten-views": Row(engine("threads", views=VIEWS), "ours", note=_VIEWS),
    "dali-cpu-encoded": Row(engine("dali"), "ours", *_DALI),
    "dali-cpu-ten-views": Row(engine("dali", views=VIEWS), "ours", *_DALI, _VIEWS),
    "dali-gpu-encoded": Row(engine("dali", device="gpu"), "ours", *_DALI, device="gpu"),
    "albumentations": Row(_ALBUMENTATIONS, "peer", *("albumentations",) * 2, "colour and geometry apart"),
    "torchvision-pil": Row(_TORCHVISION, "peer", *("torchvision",) * 2, "the original program's way"),
    "ffcv": Row(peers.ffcv, "peer", *_FFCV, "encoded again; no rotation, shear or hue"),
    "pack": Row(packing, "packing", note="decoded by each engine, and measured", warm_up=1),
    "webdataset-writer": Row(
        peers.webdataset_writer, "packing", *("webdataset",) * 2, "copies, looks at none"
    ),
    "ffcv-writer": Row(peers.ffcv_writer, "packing", *_FFCV, "decoded, and encoded again", warm_up=1),
}


def lacking(row: Row) -> str:
    """What this machine lacks for a row, or nothing."""
    there = has_dali() if row.needs == _DALI[0] else not row.needs or find_spec(row.needs)
    if not there:
        return f"pip install {row.package}"
    return "needs an NVIDIA GPU" if row.device == "gpu" and not torch.cuda.is_available() else ""
