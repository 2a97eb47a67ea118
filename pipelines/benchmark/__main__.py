"""Benchmark: the same augmentation by every engine and by the loaders that people use instead, in one run.

    greyhound benchmark --images FOLDER --json out.json --chart out.png
    greyhound benchmark --compare old.json new.json

Before it: a folder of photographs, or a pack. After it: a table, a chart, and as the last line the JSON.
Before anything is timed, rows that claim equal pixels are compared. Every sample runs in a process of its
own, rows take turns, and figures are medians: a machine that others use too is only fair to rows that are
measured beside each other. The unit to trust is core-milliseconds an image: user and system time of the row's
process and all its workers.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from greyhound.cache.cli import parse, run
from greyhound.cache.folder import find_unlabelled
from greyhound.cache.pack import Options, write
from greyhound.cache.store import Pack
from greyhound.pipelines.benchmark.measure import measure
from greyhound.pipelines.benchmark.rows import ROWS, BenchmarkError
from greyhound.pipelines.benchmark.table import as_markdown, compare, read, report


@dataclass(frozen=True)
class Job:
    """What to measure."""

    images: Path | None = None
    """A folder of photographs."""
    pack: Path | None = None
    """Or a pack."""
    seconds: float = 5.0
    """How long each sample runs."""
    repeats: int = 3
    """Samples of each row."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Which rows."""
    json: Path | None = None
    """Write the JSON here too."""
    chart: Path | None = None
    """Draw the core-milliseconds here, a PNG."""
    compare: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="OLD NEW")] = None
    """Measure nothing: say what became slower between two JSON files."""
    table: Path | None = None
    """Measure nothing: print a JSON file as the README's table."""

    def __post_init__(self) -> None:
        """Refuse what measures nothing."""
        unknown = [name for name in self.rows if name not in ROWS]
        if unknown:
            raise ValueError(f"there is no row {unknown[0]!r}; expected some of {', '.join(ROWS)}")
        if not 0 < self.seconds < 1e6:
            raise ValueError(f"seconds is {self.seconds}; expected more than 0")
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}; expected at least 1")


def main() -> int:
    """Measure, compare or tabulate, as the command line says."""
    try:
        job = parse(lambda: tyro.cli(Job, prog="greyhound benchmark"))
    except ValueError as error:  # a job that refuses its numbers
        raise BenchmarkError(str(error)) from None
    if job.compare:
        return compare(*map(read, job.compare))
    if job.table:
        print(as_markdown(read(job.table)))
        return 0
    with tempfile.TemporaryDirectory(prefix="greyhound-") as temporary:
        folder = Path(temporary)
        pack, data = open_pack(job, folder)
        report(measure(pack, data, job.rows, job.seconds, job.repeats, folder), job.json, job.chart)
    return 0


def open_pack(job: Job, folder: Path) -> tuple[Pack, str]:
    """The pack, or one made in `folder` of the images, and what it is called."""
    if job.pack and not job.images:
        return Pack(job.pack), job.pack.name
    if job.pack or not job.images:
        raise BenchmarkError(
            "name either --images FOLDER or --pack PACK; photographs, since drawn images decode too fast"
        )
    out = folder / "images.arrow"
    write(find_unlabelled(job.images), (), out, Options(keep_grayscale=True), split="train")
    return Pack(out), job.images.name


if __name__ == "__main__":
    run(main)
