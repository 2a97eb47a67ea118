"""Inspect a folder: every file once, and write down what was found, for people and for `pack`.

Before it: a folder of images, with one subfolder a class or without. After it: `survey.csv` with a row for every image, and
`excluded.csv`, which `pack --exclude` takes.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from greyhound.cache import pack
from greyhound.cache.closeup import closeup_reader
from greyhound.cache.files import DiskList, Series, replacing_all
from greyhound.cache.findings import Lines, Row, write_rows
from greyhound.cache.pack import Options, Source, check_outside, check_writable, find_file, find_images
from greyhound.cache.rules import judge
from greyhound.cache.scan import ImageInfo, Progress, counted, scan
from greyhound.cache.store import PackError


@dataclass(frozen=True)
class Seen:
    """What was seen of the files of the folder `images`, sorted by path. labels: their class folders, "" for none.

    crowded: as in `twins.find_twins`.
    """

    images: Path
    paths: Series[str]
    labels: Sequence[str]
    infos: Series[ImageInfo]
    crowded: Callable[[int], None] | None = None

    def __iter__(self) -> Iterator[Row]:
        """What is found of each."""
        closeup = closeup_reader(lambda index: find_file(self.images, self.paths[index]))
        return judge(self.paths, self.labels, self.infos, closeup, self.crowded)

    def pack(self, out: Path) -> None:
        """Pack all that can be used of the class folders, and look at nothing again. Raises PackError."""
        classes = sorted(set(self.labels) - {""}, key=lambda name: (name.casefold(), name))
        if len(classes) < 2:
            raise PackError(f"{self.images} has {len(classes)} class folders with files; expected at least 2")
        numbers = {name: number for number, name in enumerate(classes)}
        places = [place for place, label in enumerate(self.labels) if label]
        sources = [
            Source(find_file(self.images, self.paths[place]), self.paths[place], numbers[self.labels[place]])
            for place in places
        ]
        infos = (replace(self.infos[place], thumbnail=b"") for place in places)  # no twins are sought
        pack.write(sources, tuple(classes), out, Options(keep_grayscale=True), split="train", infos=infos)


@contextmanager
def inspect(
    images: Path, progress: Progress | None = None, crowded: Callable[[int], None] | None = None
) -> Iterator[Seen]:
    """Look at every file of a folder, and yield what was seen; for as long as the block runs.

    What was seen lies on disk, and rows come one by one: an image costs a few bytes of memory, and where no other has
    its content the low waves of its thumbnail. progress: called with (files looked at, files in all). crowded: as in
    `twins.find_twins`. Raises PackError and SurveyError.
    """
    with DiskList(find_images(images)) as paths:
        if not len(paths):
            raise PackError(
                f"{images} holds no images; expected some, or one subfolder a class with images in it"
            )
        with (
            closing(scan(find_file(images, path) for path in paths)) as found,
            DiskList(counted(found, len(paths), progress)) as infos,
        ):
            yield Seen(images, paths, [_class_of(path) for path in paths], infos, crowded)


def _class_of(path: str) -> str:
    """The first folder's name, one object for each; "" beside the folders."""
    return sys.intern(path.partition("/")[0]) if "/" in path else ""


def check_place(images: Path, out: Path) -> None:
    """Find out before the images are looked at, which takes long, that `out` can be written to. Raises PackError."""
    if not images.is_dir():
        return  # `inspect` says so
    check_outside(out, images)
    try:
        check_writable(out)
    except OSError as error:
        raise PackError(
            f"--out {out} is no folder that can be written to ({error.strerror or error}); name another"
        ) from None


def write(rows: Iterable[Row], out: Path) -> None:
    """survey.csv and excluded.csv in the folder `out`, both whole or not at all. Raises PackError."""
    with (
        replacing_all([out / "survey.csv", out / "excluded.csv"]) as (table, listed),
        listed.open("w", newline="", encoding="utf-8") as stream,
    ):
        write_rows(_listing(rows, stream), table)


def _listing(rows: Iterable[Row], stream: IO[str]) -> Iterator[Row]:
    """The rows as they come, with those that are to be excluded listed in `stream`."""
    table = csv.writer(Lines(stream))
    table.writerow(("path", "reason"))
    for row in rows:
        if row.verdict == "exclude":
            table.writerow((row.path, row.reason))
        yield row
