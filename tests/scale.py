"""What grows how fast with the number of images: docs/scale.md.

    python tests/scale.py --json measured.json
    python tests/scale.py --draw docs/benchmarks/scale-2026-11-29.json docs/benchmarks/scale-2026-11-29.png

Before it: nothing; it writes packs whose images are four bytes each, so that all but the photographs is as in a pack
of that size. After it: two tables in Markdown, core-seconds with the exponent of their growth, and memory; and a
picture of all rows of a JSON file, to which rows that were measured otherwise may be added by hand.
`MEASURES` has the rows: add one that takes the path of a pack and says what it costs, in a process of its own.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib import colors
from matplotlib.figure import Figure
from numpy.typing import NDArray

from greyhound.cache.cli import read_or_exit
from greyhound.cache.index import add_index
from greyhound.cache.options import read_options
from greyhound.cache.shards import divide, shard_paths
from greyhound.cache.store import SCHEMA, SPLITS, Header, Pack
from greyhound.pipelines.augment import Augment, draw
from greyhound.pipelines.order import order_at

ROWS_A_RECORD_BATCH = 300
"""As many photographs of 110 kB as fill the packer's 32 MiB."""
ROWS_A_SHARD = 218_750
"""Files of 24 GB."""
SAMPLES = 3
"""Of each measure, whose median counts."""
BATCH = 256
"""Images that a batch has, or a rank's share of it."""
IMAGE = bytes(4)
CLASSES = tuple(f"class {number:04d}" for number in range(1000))


@dataclass(frozen=True)
class Scale:
    """Write packs without photographs, and measure them."""

    images: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000, 14_000_000)
    """Rows of each pack."""
    measures: tuple[str, ...] = ()
    """Names in MEASURES; all where none is named."""
    folder: Path | None = None
    """Where the packs are written for a while; default: the system's temporary folder."""
    json: Path | None = None
    """Write the figures here too."""
    draw: tuple[Path, Path] | None = None
    """Measure nothing: draw the figures of a JSON file, the first, as a PNG, the second."""


@dataclass(frozen=True, order=True)
class Cost:
    """Of one measure at one size: seconds of a processor, and bytes resident at most, the program's own among them."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Row:
    """What a measure costs by the number of images. peak_mb: resident at most, where that was measured."""

    name: str
    images: tuple[int, ...]
    core_seconds: tuple[float, ...]
    peak_mb: tuple[float, ...] = ()

    @property
    def exponent(self) -> float:
        """The x of n to the power of x between the last two sizes, where constants hide it least; 0 where there is one."""
        if len(self.images) < 2:
            return 0.0
        return math.log(self.core_seconds[-1] / self.core_seconds[-2]) / math.log(
            self.images[-1] / self.images[-2]
        )


def main(scale: Scale) -> None:
    if scale.draw:
        draw_chart(scale.draw[1], read(scale.draw[0]))
        return
    costs: dict[str, list[Cost]] = {name: [] for name in scale.measures or MEASURES}
    for images in scale.images:
        with tempfile.TemporaryDirectory(dir=scale.folder) as temporary:
            pack = Path(temporary) / "scale.arrow"
            write(pack, images, -(-images // ROWS_A_SHARD))
            for name, found in costs.items():
                command = [sys.executable, __file__, "measure", name, str(pack)]
                answers = [Cost(**json.loads(subprocess.check_output(command))) for _ in range(SAMPLES)]
                found.append(sorted(answers)[SAMPLES // 2])
    rows = [as_row(name, scale.images, found) for name, found in costs.items()]
    print(as_markdown(rows))
    if scale.json:
        scale.json.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def as_row(name: str, images: tuple[int, ...], costs: Sequence[Cost]) -> Row:
    return Row(name, images, tuple(c.seconds for c in costs), tuple(c.peak_bytes / 1e6 for c in costs))


def read(file: Path) -> list[Row]:
    """The rows of a JSON file."""
    rows = json.loads(file.read_text())["rows"]
    names = ("images", "core_seconds", "peak_mb")
    return [Row(row["name"], *(tuple(row.get(name, ())) for name in names)) for row in rows]


def as_markdown(rows: Sequence[Row]) -> str:
    """Two tables of rows of the same sizes: core-seconds with their exponent, and MB."""
    head = "| " + " | ".join(f"{size:,}" for size in rows[0].images) + " |"
    lines = [f"| core-seconds {head} exponent |", "|" + "---|" * (len(rows[0].images) + 2)]
    for row in rows:
        cells = " | ".join(f"{seconds:.3g}" for seconds in row.core_seconds)
        lines.append(f"| {row.name} | {cells} | {row.exponent:.2f} |")
    lines += ["", f"| MB resident at most {head}", "|" + "---|" * (len(rows[0].images) + 1)]
    lines += [f"| {row.name} | " + " | ".join(f"{peak:.0f}" for peak in row.peak_mb) + " |" for row in rows]
    return "\n".join(lines)


def draw_chart(path: Path, rows: Sequence[Row]) -> None:
    """Cost over the number of images, both logarithmic; at the end of each line its name and exponent."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = min(row.images[0] for row in rows), max(row.images[-1] for row in rows)
    for row, colour in zip(rows, colors.TABLEAU_COLORS, strict=False):
        axes.plot(row.images, row.core_seconds, color=colour, marker="o", markersize=4)
        # beside the end where there is nothing more, else above the line, which others may cross
        last = row.images[-1] == high
        place: dict[str, Any] = (
            {"xytext": (7, 0), "va": "center"} if last else {"xytext": (0, 6), "ha": "right"}
        )
        text, end = f"{row.name}: {row.exponent:.2f}", (row.images[-1], row.core_seconds[-1])
        axes.annotate(text, end, textcoords="offset points", color=colour, fontsize=10, **place)
    for cost in 10.0 ** np.arange(-7, 4):
        axes.plot([low, high], [cost, cost * high / low], color="#e8e4dc", linewidth=0.8, zorder=0)
    axes.set_xlim(low / 1.5, high * 300)  # room for the names
    axes.set_xticks(10 ** np.arange(3, 8))
    axes.minorticks_off()
    axes.set_ylim(1e-4, 1e3)
    axes.set_xlabel("images; grey lines grow as their number")
    axes.set_ylabel("core-seconds")
    axes.set_title("What grows how fast: cost as n to the power of ...", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def write(pack: Path, images: int, shards: int = 1, rows_a_batch: int = ROWS_A_RECORD_BATCH) -> None:
    for index, path in enumerate(shard_paths(pack, shards)):
        columns = index_of(np.arange(*divide(images, shards)[index]))
        header = Header(CLASSES, "0" * 64, 0, shard=index, shards=shards)
        table = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, header.schema()) as writer:
            for batch in table.to_batches(max_chunksize=rows_a_batch):
                writer.write_batch(batch)
        add_index(path)


def index_of(rows: NDArray[np.int64]) -> dict[str, pa.Array]:
    count = len(rows)
    splits = np.where(rows % 20 == 0, 1, np.where(rows % 20 == 1, 2, 0)).astype(np.int8)
    offsets = pa.py_buffer(np.arange(0, len(IMAGE) * count + 1, len(IMAGE), dtype=np.int64))
    images = [None, offsets, pa.py_buffer(IMAGE * count)]
    names, numbers = (pa.array(of).cast(pa.string()) for of in (rows % len(CLASSES), rows))
    same = {"width": 500, "height": 375, "orientation": 1, "mean_luma": 110, "crc32": zlib.crc32(IMAGE)}
    return {
        "image": pa.LargeBinaryArray.from_buffers(pa.large_binary(), count, images),
        "label": pa.array((rows % len(CLASSES)).astype(np.int32)),
        "split": pa.DictionaryArray.from_arrays(pa.array(splits), pa.array(SPLITS)),
        "path": pa.compute.binary_join_element_wise(names, numbers, "/photograph_of_it_number_"),
        **{name: pa.array(np.full(count, value), SCHEMA.field(name).type) for name, value in same.items()},
    }


def open_pack(path: Path) -> float:
    """Open it, and ask for the rows of every split, as a training does first."""
    return timed(lambda: [Pack(path).ids(split) for split in SPLITS])


def read_columns(path: Path) -> float:
    """Read and check every other column, as a training does before its first batch."""
    pack = Pack(path)
    return timed(lambda: (pack.stored_sizes, pack.mean_lumas, pack.crc32s, pack._places))


def order(path: Path) -> float:
    """All batches of an epoch, in order."""
    ids = Pack(path).ids("train")

    def every_batch() -> None:
        for low in range(0, len(ids), BATCH):
            ids[order_at(np.arange(low, min(low + BATCH, len(ids))), len(ids), 0, 1)]

    return timed(every_batch)


def draws(path: Path) -> float:
    """The augmentation of all images of an epoch, batch by batch."""
    pack, augment = Pack(path), Augment()
    ids, sizes, lumas = pack.ids("train"), pack.sizes, pack.mean_lumas

    def every_batch() -> None:
        for low in range(0, len(ids), BATCH):
            rows = ids[low : low + BATCH]
            draw(augment, 0, 1, rows, sizes[rows], lumas=lumas[rows])

    return timed(every_batch)


def epoch(path: Path) -> float:
    """All that a loader says of an epoch before anything is decoded: order, draws and matrices of every batch."""
    from greyhound.pipelines.engine import Resources  # here: torch would count as memory of the other rows
    from greyhound.pipelines.loader import Loader, Position

    pack, resources = Pack(path), Resources("threads", "cpu", 1, image_cache="encoded")
    with Loader(pack, Augment(), pack.ids("train"), resources, batch_size=BATCH, shuffle=True) as loader:
        return timed(lambda: deque(loader._specs(Position(), 1), maxlen=0))


MEASURES: dict[str, Callable[[Path], float]] = {
    "open, and the rows of each split": open_pack,
    "all other columns": read_columns,
    "order of an epoch": order,
    "draws of an epoch": draws,
    "an epoch's batches": epoch,
}
"""What is measured, by its name in the table: seconds of a processor that it takes on a pack."""


def measure(name: str, path: Path) -> Cost:
    """One measure, in this process."""
    return Cost(MEASURES[name](path), peak())


def timed(work: Callable[[], object]) -> float:
    """How many seconds of a processor it took."""
    started = time.process_time()
    work()
    return time.process_time() - started


def peak() -> int:
    """Bytes that were resident at most, mapped pages among them. Not ru_maxrss, which exec hands on from the parent."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(asdict(measure(sys.argv[2], Path(sys.argv[3])))))
    else:
        main(read_or_exit(lambda: read_options(Scale, sys.argv[1:], "python tests/scale.py")))
