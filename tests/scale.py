"""How long an index of millions of images takes to open, to order and to draw for, and what memory: docs/scale.md.

    python tests/scale.py --images 1300000 --shards 8

Before it: nothing; it writes a pack whose images are four bytes each, so that all but the photographs is as in a pack of
that size. After it: one line of JSON.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from greyhound.cache.cli import read_or_exit
from greyhound.cache.index import add_index
from greyhound.cache.options import read_options
from greyhound.cache.shards import divide, shard_paths
from greyhound.cache.store import SCHEMA, SPLITS, Header, Pack
from greyhound.pipelines.augment import Augment, draw, epoch_order, rank_share

T = TypeVar("T")

ROWS_A_RECORD_BATCH = 300
"""As many photographs of 110 kB as fill the packer's 32 MiB."""
BATCH = 1024
IMAGE = bytes(4)
CLASSES = tuple(f"class {number:04d}" for number in range(1000))


@dataclass(frozen=True)
class Scale:
    """Write a pack of so many rows without photographs, and measure it."""

    images: int = 1_300_000
    """Rows of the pack."""
    shards: int = 8
    """Files that they are divided into."""
    folder: Path | None = None
    """Where the pack is written for a while; default: the system's temporary folder."""


def main(scale: Scale) -> None:
    with tempfile.TemporaryDirectory(dir=scale.folder) as temporary:
        pack = Path(temporary) / "scale.arrow"
        write(pack, scale.images, scale.shards)
        print(subprocess.check_output([sys.executable, __file__, "measure", str(pack)], text=True), end="")


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


def measure(path: str) -> None:
    before = peak()
    pack, opened = timed(lambda: Pack(path))
    ids = pack.ids("train")
    order, ordered = timed(lambda: epoch_order(ids, 0, 1))
    peaks = peak() - before
    augment, mine = Augment(), rank_share(order, 0, 8)

    def draw_batches() -> None:
        for low in range(0, 64 * BATCH, BATCH):
            rows = mine[low : low + BATCH]
            draw(augment, 0, 1, rows, pack.sizes[rows], lumas=pack.mean_lumas[rows])

    _, drawn = timed(draw_batches)
    found = {
        "images": len(pack),
        "shards": pack.header.shards,
        "index_bytes": sum(file.stat().st_size for file in Path(path).parent.iterdir()),
        "open_s": round(opened, 2),
        "order_s": round(ordered, 2),
        "draw_s_a_million": round(drawn / (64 * BATCH) * 1e6, 1),
        "peak_bytes_added": peaks,
        "peak_bytes": peak(),
    }
    print(json.dumps(found))


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and how many seconds of a processor it took."""
    started = time.process_time()
    value = work()
    return value, time.process_time() - started


def peak() -> int:
    """Bytes that were resident at most, the mapped pages of the pack among them."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2])
    else:
        main(read_or_exit(lambda: read_options(Scale, sys.argv[1:], "python tests/scale.py")))
