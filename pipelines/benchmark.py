"""Benchmark: the same augmentation by every engine and by the seed's own way, side by side in one run.

    python -m pipelines.benchmark --images FOLDER

Before it: a folder of photographs, or a pack. After it: a table, and as the last line its JSON. Rows are interleaved
and repeated, because a machine that others use too is only fair to rows that are measured beside each other. The
unit to trust is core-milliseconds an image: user and system time of this process and its workers.
"""

from __future__ import annotations

import io
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cache.command import parse, run
from cache.machine import available_cores, describe_machine
from cache.pack import Options, find_unlabelled, write
from cache.store import Pack, PackError
from cache.survey import SurveyError
from pipelines.augment import Augment
from pipelines.decode import decode
from pipelines.examine import available
from pipelines.loader import EngineName, Loader, Resources

BATCH_SIZE = 64
AGREEMENT = 1.0
"""Mean levels of 255 by which rows that claim equal pixels may differ."""


@dataclass(frozen=True)
class Job:
    """What to measure."""

    images: Path | None = None
    """A folder of photographs."""
    pack: Path | None = None
    """Or a pack."""
    seconds: float = 5.0
    """About how long each row runs, each time."""
    repeats: int = 3
    rows: tuple[str, ...] = ("decode-only", "threads-encoded", "dali-cpu-encoded", "torchvision-pil")
    json: Path | None = None
    """Write the JSON here too."""


@dataclass(frozen=True)
class Row:
    """One measured row: medians over the repeats; spread: lowest and highest core-milliseconds an image."""

    name: str
    images_per_second: float
    core_ms_per_image: float
    spread: tuple[float, float]


Pass = Callable[[Pack, int, int], Iterator[int]]
"""Prepares `images` images with `threads` threads or workers, and yields how many each batch had."""


def decode_only(pack: Pack, images: int, threads: int) -> Iterator[int]:
    """The floor: libjpeg-turbo alone, on a thread pool."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda k: decode(pack.encoded(k % len(pack))), range(images)):
            yield 1


def _engine(name: EngineName) -> Pass:
    def prepare(pack: Pack, images: int, threads: int) -> Iterator[int]:
        ids = np.arange(len(pack))
        with Loader(
            pack,
            Augment(),
            ids,
            Resources(name, "cpu", threads),
            batch_size=BATCH_SIZE,
            shuffle=True,
        ) as loader:
            done = 0
            for batch in loader:
                yield len(batch.ids)
                done += len(batch.ids)
                if done >= images:
                    return

    return prepare


class _SeedsWay(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """The recipe's augmentation as the seed wrote it: torchvision on PIL images, originals in memory."""

    def __init__(self, pack: Pack, images: int) -> None:
        from torchvision.transforms import v2

        self.pack, self.images = pack, images
        augment = Augment()
        self.finish = v2.Compose(
            [
                v2.RandomCrop(augment.size, pad_if_needed=True),
                v2.RandomAffine(
                    augment.rotation, shear=augment.shear, interpolation=v2.InterpolationMode.BILINEAR
                ),
                v2.ColorJitter(augment.brightness, augment.contrast, augment.saturation, augment.hue),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image
        from torchvision.transforms.v2 import functional

        augment, row = Augment(), index % len(self.pack)
        scale = augment.scale[0] + (augment.scale[1] - augment.scale[0]) * float(torch.rand(()))
        image = Image.open(io.BytesIO(self.pack.encoded(row).data)).convert("RGB")
        resized = functional.resize(image, [round(scale * augment.size)])
        return self.finish(resized), int(self.pack.labels[row])


def torchvision_pil(pack: Pack, images: int, threads: int) -> Iterator[int]:
    """The seed's way, in worker processes."""
    loader = torch.utils.data.DataLoader(
        _SeedsWay(pack, images), BATCH_SIZE, shuffle=True, num_workers=threads, multiprocessing_context="fork"
    )
    for pixels, _ in loader:
        yield len(pixels)


ROWS: dict[str, Pass] = {
    "decode-only": decode_only,
    "threads-encoded": _engine("threads"),
    "dali-cpu-encoded": _engine("dali"),
    "torchvision-pil": torchvision_pil,
}


def main() -> int:
    """Measure what the command line names."""
    job = parse(lambda: tyro.cli(Job, prog="python -m pipelines.benchmark"))
    unknown = [name for name in job.rows if name not in ROWS]
    if unknown:
        raise PackError(f"there is no row {unknown[0]!r}; expected some of {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory(prefix="greyhound-") as temporary:
        report(job, measure(job, open_pack(job, Path(temporary))))
    return 0


def open_pack(job: Job, temporary: Path) -> Pack:
    """The pack, or one made of the folder; resident."""
    if (job.pack is None) == (job.images is None):
        raise PackError(
            "name either --images FOLDER or --pack PACK; photographs, since drawn images decode too fast"
        )
    if job.images:
        write(
            find_unlabelled(job.images),
            (),
            temporary / "images.arrow",
            Options(keep_grayscale=True),
            split="train",
        )
    pack = Pack(job.pack or temporary / "images.arrow")
    pack.make_resident()
    return pack


def measure(job: Job, pack: Pack) -> list[Row]:
    """Check that the engines agree, then time every row, interleaved."""
    check_agreement(pack)
    names = [name for name in job.rows if name != "dali-cpu-encoded" or available()]
    counts = {name: _calibrate(ROWS[name], pack, job.seconds) for name in names}
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(job.repeats):
        for name in names:
            results[name].append(_time(ROWS[name], pack, counts[name]))
    return [_summarise(name, timings) for name, timings in results.items()]


def check_agreement(pack: Pack) -> None:
    """Rows that claim equal pixels must have them, or no time of theirs means anything."""
    if not available():
        return
    pixels = [_first_batch(pack, name) for name in ("threads", "dali")]
    apart = float((pixels[0] - pixels[1]).abs().mean() * 255)
    if apart > AGREEMENT:
        raise RuntimeError(
            f"threads and dali differ by {apart:.3f} levels on the same draws; nothing was timed"
        )


def _first_batch(pack: Pack, engine: EngineName) -> torch.Tensor:
    ids: NDArray[np.int64] = np.arange(min(len(pack), BATCH_SIZE))
    with Loader(pack, Augment(), ids, Resources(engine, "cpu"), batch_size=len(ids), epochs=1) as loader:
        return next(iter(loader)).images.clone()


def _calibrate(row: Pass, pack: Pack, seconds: float) -> int:
    """How many images take about `seconds`; also the warm-up."""
    _, elapsed = _clocked(row, pack, 4 * BATCH_SIZE)
    return max(4 * BATCH_SIZE, int(4 * BATCH_SIZE * seconds / elapsed))


def _time(row: Pass, pack: Pack, images: int) -> tuple[float, float]:
    """Images a second and core-milliseconds an image."""
    before = _core_seconds()
    done, elapsed = _clocked(row, pack, images)
    return done / elapsed, 1000 * (_core_seconds() - before) / done


def _clocked(row: Pass, pack: Pack, images: int) -> tuple[int, float]:
    started = time.perf_counter()
    done = sum(row(pack, images, available_cores()))
    return done, time.perf_counter() - started


def _core_seconds() -> float:
    """User and system time of this process and of its workers that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _summarise(name: str, timings: list[tuple[float, float]]) -> Row:
    speeds, costs = zip(*timings, strict=True)
    return Row(name, statistics.median(speeds), statistics.median(costs), (min(costs), max(costs)))


def report(job: Job, rows: list[Row]) -> None:
    """Print the table, then the JSON as the last line."""
    table = Table(
        "row", "img/s", "core-ms/img", "range", "ratio", caption="ratio: core-ms to torchvision-pil's"
    )
    base = {row.name: row.core_ms_per_image for row in rows}.get("torchvision-pil")
    for row in rows:
        ratio = f"{row.core_ms_per_image / base:.2f}" if base else "-"
        low, high = row.spread
        table.add_row(
            row.name,
            f"{row.images_per_second:.0f}",
            f"{row.core_ms_per_image:.2f}",
            f"{low:.2f}..{high:.2f}",
            ratio,
        )
    console = Console()
    console.print(table)
    text = json.dumps(conditions(job) | {"rows": [asdict(row) for row in rows]})
    if job.json:
        job.json.write_text(text + "\n")
    console.file.write(text + "\n")


def conditions(job: Job) -> dict[str, Any]:
    """What a figure depends on."""
    packages = (
        "torch",
        "torchvision",
        "nvidia-dali-cuda120",
        "opencv-python-headless",
        "simplejpeg",
        "pillow",
    )
    return {
        "machine": describe_machine(),
        "versions": {name: metadata.version(name) for name in packages},
        "date": datetime.now(UTC).date().isoformat(),
        "data": str(job.images or job.pack),
    }


if __name__ == "__main__":
    run(main, PackError, SurveyError)
