"""Measure: rows take turns, every sample in a process of its own, and figures are medians.

Before it: `rows`, and a pack. After it: a dictionary, which is the JSON that `table` prints.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import psutil
import torch

from greyhound.cache.cli import progress_bar
from greyhound.cache.machine import available_cores, describe_machine, installed
from greyhound.cache.store import Pack
from greyhound.pipelines.benchmark import peers
from greyhound.pipelines.benchmark.peers import BATCH_SIZE
from greyhound.pipelines.benchmark.rows import ROWS, BenchmarkError, lacking
from greyhound.pipelines.engine import EngineName, ImageCacheName, Resources
from greyhound.pipelines.loader import Loader

AGREEMENT: Final = 1.0
"""Mean levels of 255 by which rows that claim equal pixels may differ."""
PACKAGES: Final = (
    "torch", "torchvision", "nvidia-dali-cuda*", "opencv-python-headless", "simplejpeg", "pillow",
    "albumentations", "ffcv",
)  # fmt: skip
"""Whose versions a figure depends on."""


class Sample(NamedTuple):
    """One measurement of one row. peak_mib: at its end, when every buffer is in use."""

    images_per_second: float
    core_ms_per_image: float
    peak_mib: float


@dataclass(frozen=True)
class Result:
    """A row's medians over its samples. spread: lowest and highest core-milliseconds an image."""

    name: str
    images_per_second: float
    core_ms_per_image: float
    peak_mib: float
    spread: tuple[float, float]


def measure(pack: Pack, data: str, names: tuple[str, ...], seconds: float, repeats: int) -> dict[str, Any]:
    """Check that the engines agree, then sample the rows `names`, each in turn: all that the JSON says.

    data: what the pack holds, for the reader. seconds, repeats: of each sample, of each row. Raises
    BenchmarkError.
    """
    check_agreement(pack)
    missing = {name: why for name in names if (why := lacking(ROWS[name]))}
    present = [name for name in names if name not in missing]
    samples: dict[str, list[Sample]] = {name: [] for name in present}
    turns = present * repeats
    with progress_bar("measuring") as update:
        for done, name in enumerate(turns):
            update(done, len(turns), partial(str, name))
            samples[name].append(_in_a_process(sample, name, pack.path, seconds))
    return {
        "machine": describe_machine(),
        "versions": installed(*PACKAGES),
        "date": datetime.now(UTC).date().isoformat(),
        "data": f"{data}: {len(pack)} images, {pack.nbytes / len(pack) / 1000:.0f} kB each",
        "seconds": seconds,
        "repeats": repeats,
        "missing": missing,
        "rows": [asdict(summarise(name, taken)) for name, taken in samples.items()],
    }


def check_agreement(pack: Pack) -> None:
    """Rows that claim equal pixels must have them, or their times mean nothing. Raises BenchmarkError."""
    expected = first_batch(pack, "threads", "encoded")
    others: list[tuple[EngineName, ImageCacheName]] = [("threads", "decoded")]
    if not lacking(ROWS["dali-cpu-encoded"]):
        others.append(("dali", "encoded"))
    for name, cache in others:
        apart = float((first_batch(pack, name, cache) - expected).abs().mean() * 255)
        if apart > AGREEMENT:
            found = f"differs from threads, encoded, by {apart:.3f} levels on the same draws"
            raise BenchmarkError(f"{name}, {cache}, {found}; nothing was timed")


def first_batch(pack: Pack, name: EngineName, cache: ImageCacheName) -> torch.Tensor:
    """Images of the second epoch, where a cache is in use."""
    ids = np.arange(min(len(pack), BATCH_SIZE))
    resources = Resources(name, "cpu", image_cache=cache)
    with Loader(pack, peers.AUGMENT, ids, resources, batch_size=len(ids), epochs=2) as loader:
        *_, last = loader
    return last.images


def _in_a_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a fresh process: no row inherits another's memory, threads or caches."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def sample(name: str, path: Path, seconds: float) -> Sample:
    """Run a row for so long, once it is warm."""
    pack = Pack(path)
    pack.make_resident()
    stream = ROWS[name].run(pack, available_cores())
    for _ in range(ROWS[name].warm_up):
        next(stream)
    done, started, before = 0, time.perf_counter(), core_seconds()
    while time.perf_counter() - started < seconds:
        done += next(stream)
    if ROWS[name].device == "gpu":
        torch.cuda.synchronize()  # the batches are done when the GPU has made them
    elapsed, spent = time.perf_counter() - started, core_seconds() - before
    memory = sum(process.memory_full_info().pss for process in _family())  # what they share counted once
    found = Sample(done / elapsed, 1000 * spent / done, memory / 2**20)
    stream.close()  # type: ignore[attr-defined]
    return found


def core_seconds() -> float:
    """User and system time so far of this process and of all its workers, also of those that have ended."""
    return float(sum(sum(process.cpu_times()[:4]) for process in _family()))


def _family() -> list[Any]:
    process = psutil.Process()
    return [process, *process.children(recursive=True)]


def summarise(name: str, samples: list[Sample]) -> Result:
    """Medians, and the spread of what is to be trusted."""
    speeds, costs, peaks = zip(*samples, strict=True)
    speed, cost, peak = map(statistics.median, (speeds, costs, peaks))
    return Result(name, speed, cost, peak, (min(costs), max(costs)))
