"""Benchmark: the same augmentation by every engine and by the loaders that people use instead, in one run.

    greyhound benchmark --images FOLDER --json out.json --chart out.png
    greyhound benchmark --compare old.json new.json

Before it: a folder of photographs, or a pack. After it: a table, a chart, and as the last line the JSON.
Trust core-milliseconds an image: user and system time of the process and its workers.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from greyhound.cache.cli import run
from greyhound.cache.options import OptionError, read_options

if TYPE_CHECKING:
    from greyhound.cache.store import Pack


@dataclass(frozen=True)
class Job:
    """Measure the loaders on your own photographs, each row in turns with the others."""

    images: Path | None = None
    """A folder of photographs."""
    pack: Path | None = None
    """Or a pack."""
    seconds: float = 5.0
    """Seconds that each sample runs."""
    repeats: int = 3
    """Samples of each row."""
    rows: tuple[str, ...] = ()
    """Rows to measure, by their names in the table; default: all."""
    json: Path | None = None
    """Write the JSON here too; default: only print it, as the last line."""
    chart: Path | None = None
    """Draw the core-milliseconds here, as a PNG; default: no chart."""
    compare: tuple[Path, Path] | None = None
    """Measure nothing: say what became slower between two JSON files, the old one and the new one."""
    table: Path | None = None
    """Measure nothing: print a JSON file as the README's table."""

    def __post_init__(self) -> None:
        """Refuse what measures nothing."""
        if not 0 < self.seconds < 1e6:
            raise ValueError(f"seconds is {self.seconds}; expected more than 0")
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}; expected at least 1")


def main() -> int:
    """Measure, compare or tabulate, as the command line says."""
    job = read_options(Job, sys.argv[1:], "greyhound benchmark")
    from greyhound.pipelines.benchmark.measure import measure
    from greyhound.pipelines.benchmark.rows import ROWS
    from greyhound.pipelines.benchmark.table import as_markdown, compare, read, report

    if unknown := [name for name in job.rows if name not in ROWS]:
        raise OptionError(f"there is no row {unknown[0]!r}; expected some of {', '.join(ROWS)}")
    if job.compare:
        return compare(*map(read, job.compare))
    if job.table:
        print(as_markdown(read(job.table)))
        return 0
    with tempfile.TemporaryDirectory(prefix="greyhound-") as temporary:
        pack, data = open_pack(job, Path(temporary))
        found = measure(pack, data, job.rows or tuple(ROWS), job.seconds, job.repeats)
        report(found, job.json, job.chart)
    return 0


def open_pack(job: Job, folder: Path) -> tuple[Pack, str]:
    """The pack, or one made in `folder` of the images, and what it is called. Raises OptionError."""
    from greyhound.cache.folder import find_unlabelled
    from greyhound.cache.pack import write_all
    from greyhound.cache.store import Pack

    if job.pack and not job.images:
        return Pack(job.pack), job.pack.name
    if job.pack or not job.images:
        raise OptionError("name either --images FOLDER or --pack PACK; drawn images decode too fast")
    out = folder / "images.arrow"
    write_all(find_unlabelled(job.images), (), out)
    return Pack(out), job.images.name


if __name__ == "__main__":
    run(main)
