"""Rows of the benchmark: what each one does with a pack, and what it needs for that.

Before it: a resident pack. After it: `measure` runs each of them against the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Literal

import numpy as np
import torch

from greyhound.cache.decode import decode, downsample
from greyhound.cache.errors import UserError
from greyhound.cache.store import Pack
from greyhound.pipelines.augment import halvings
from greyhound.pipelines.benchmark import peers
from greyhound.pipelines.clock import Clock
from greyhound.pipelines.loader import EngineName, Loader, Resources
from greyhound.pipelines.request import Device
from greyhound.pipelines.tier import Tier, TierName

BATCH_SIZE: Final = 64
VIEWS: Final = 10

Pass = Callable[[Pack, int], Iterator[int]]
"""Works through a pack without end, on so many threads or workers; yields how many images each batch had."""


class BenchmarkError(UserError):
    """Nothing can be measured as asked; the message is one line for the user."""


@dataclass(frozen=True)
class Row:
    """One thing to measure. needs: an importable module. package: what pip calls it. note: what it does not do."""

    run: Pass
    kind: Literal["ours", "ceiling", "peer", "training"]
    needs: str = ""
    package: str = ""
    note: str = ""
    device: Device = "cpu"
    large: bool = False
    """Works on the same photographs enlarged to 12 megapixels, as `large.enlarged` makes them."""


def decode_only(pack: Pack, workers: int) -> Iterator[int]:
    """The floor: libjpeg-turbo alone, as the engine calls it, on as many threads."""
    tier = Tier(pack, np.zeros(len(pack), dtype=bool), halvings(peers.AUGMENT, pack.sizes))
    yield from _on_threads(workers, lambda row: tier.pixels(row % len(pack)))


def copy_only(pack: Pack, workers: int) -> Iterator[int]:
    """The other floor: a batch of floats is written to memory, whatever is in it."""
    source = np.zeros((peers.AUGMENT.size, peers.AUGMENT.size, 3), dtype=np.float32)
    batch = np.empty((BATCH_SIZE, *source.shape), dtype=np.float32)
    yield from _on_threads(workers, lambda row: np.copyto(batch[row % BATCH_SIZE], source))


def _on_threads(workers: int, work: Callable[[int], Any]) -> Iterator[int]:
    """Batches of calls `work(0)`, `work(1)`, ... on a pool whose threads take them off a common counter."""

    def some(rows: Iterator[int]) -> None:
        for row in rows:
            work(row)

    with ThreadPoolExecutor(workers) as pool:
        start = 0
        while True:
            rows = iter(range(start, start + BATCH_SIZE))
            for task in [pool.submit(some, rows) for _ in range(workers)]:
                task.result()
            start += BATCH_SIZE
            yield BATCH_SIZE


def engine(name: EngineName, tier: TierName, views: int = 1, device: Device = "cpu") -> Pass:
    """One of ours; with more than one view each view counts."""

    def work(pack: Pack, workers: int) -> Iterator[int]:
        with open_loader(pack, Resources(name, device, workers, tier=tier), views) as loader:
            if tier == "decoded":
                for _ in loader.epoch():  # which decodes every image, once
                    pass
            for batch in loader:
                yield len(batch.ids) * views

    return work


def open_loader(pack: Pack, resources: Resources, views: int = 1, epochs: int | None = None) -> Loader:
    """Training batches of every image of the pack, for so many epochs; endless without."""
    ids = np.arange(len(pack))
    size = max(1, BATCH_SIZE // views)
    return Loader(
        pack, peers.AUGMENT, ids, resources, batch_size=size, shuffle=True, views=views, epochs=epochs
    )


def full_decode(pack: Pack, workers: int) -> Iterator[int]:
    """Large originals without libjpeg's scaled decode: every pixel decoded, then the mean of each block; no warp."""
    halved = halvings(peers.AUGMENT, pack.sizes)
    yield from _on_threads(
        workers, lambda row: downsample(decode(pack.encoded(row % len(pack))), int(halved[row % len(pack)]))
    )


def train_step(with_loader: bool, clock: Clock | None = None) -> Pass:
    """The paper's network, EfficientNet-B2, forward and backward with SGD in float32, from batches of 8 images.

    Without the loader: one batch again and again, the ceiling of what any loader could reach. clock: is told how long
    each step waits for its batch.
    """

    def work(pack: Pack, workers: int) -> Iterator[int]:
        from torchvision.models import efficientnet_b2

        network = efficientnet_b2(num_classes=25).to(memory_format=torch.channels_last)
        optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
        labels = torch.zeros(8, dtype=torch.int64)
        ids = np.arange(len(pack))
        with Loader(
            pack, peers.AUGMENT, ids, Resources("threads", "cpu", workers), batch_size=8, shuffle=True
        ) as loader:
            stream = (clock or Clock()).waits(iter(loader))
            images = next(stream).images
            while True:
                loss = torch.nn.functional.cross_entropy(network(images), labels[: len(images)])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                yield len(images)
                if with_loader:
                    images = next(stream).images

    return work


def in_workers(finish: Callable[[], Callable[[Any], torch.Tensor]]) -> Pass:
    """A peer in torch's worker processes."""
    return lambda pack, workers: peers.in_workers(pack, finish(), BATCH_SIZE, workers)


def ffcv(mode: Literal["jpg", "raw"]) -> Pass:
    """FFCV, in one of its two ways to keep pixels."""
    return lambda pack, workers: peers.ffcv(mode)(pack, BATCH_SIZE, workers)


_DALI: Final[tuple[str, str]] = ("nvidia.dali", "nvidia-dali-cuda120")
_FFCV: Final[tuple[str, str]] = (
    "ffcv",
    "ffcv, which is built from source: apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++",
)
ROWS: Final[dict[str, Row]] = {
    "copy-only": Row(copy_only, "ceiling", note="ceiling: memory alone"),
    "decode-only": Row(decode_only, "ceiling", note="ceiling: libjpeg-turbo alone"),
    "threads-encoded": Row(engine("threads", "encoded"), "ours"),
    "threads-decoded": Row(engine("threads", "decoded"), "ours", note="originals decoded before"),
    "threads-ten-views": Row(engine("threads", "encoded", VIEWS), "ours", note="each view counts"),
    "dali-cpu-encoded": Row(engine("dali", "encoded"), "ours", *_DALI),
    "dali-cpu-decoded": Row(engine("dali", "decoded"), "ours", *_DALI, "originals decoded before"),
    "dali-cpu-ten-views": Row(engine("dali", "encoded", VIEWS), "ours", *_DALI, "each view counts"),
    "dali-gpu-encoded": Row(engine("dali", "encoded", device="gpu"), "ours", *_DALI, device="gpu"),
    "dali-gpu-decoded": Row(engine("dali", "decoded", device="gpu"), "ours", *_DALI, device="gpu"),
    "large-encoded": Row(engine("threads", "encoded"), "ours", note="12 megapixels each", large=True),
    "large-full-decode": Row(
        full_decode, "peer", note="12 megapixels each, decoded in full, no warp", large=True
    ),
    "albumentations": Row(
        in_workers(peers.albumentations),
        "peer",
        "albumentations",
        "albumentations",
        "colour and geometry one by one",
    ),
    "torchvision-pil": Row(
        in_workers(peers.torchvision_pil), "peer", "torchvision", "torchvision", "the seed's own way"
    ),
    "dali-naive": Row(
        lambda pack, workers: peers.dali_naive(pack, BATCH_SIZE, workers), "peer", *_DALI, "no scale below 1"
    ),
    "ffcv": Row(ffcv("jpg"), "peer", *_FFCV, "encoded again; no rotation, shear or hue"),
    "ffcv-raw": Row(ffcv("raw"), "peer", *_FFCV, "decoded before; no rotation, shear or hue"),
    "model-only": Row(train_step(with_loader=False), "training", note="EfficientNet-B2, float32, batch 8"),
    "train-step": Row(train_step(with_loader=True), "training", note="the same with its loader"),
}


def lacking(row: Row) -> str:
    """What this machine lacks for a row, or nothing."""
    if row.needs and find_spec(row.needs.partition(".")[0]) is None:
        return f"pip install {row.package}"
    return "needs an NVIDIA GPU" if row.device == "gpu" and not torch.cuda.is_available() else ""
