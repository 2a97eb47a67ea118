"""Inspect a folder: every file once, and write down what was found, for people and for `pack`.

Before it: a folder of images, with one subfolder a class or without. After it: `survey.csv` with a row for every image, and
`excluded.csv`, which `pack --exclude` takes.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cache.findings import Row, write_rows
from cache.pack import find_unlabelled, named_as_image, replacing
from cache.rules import judge
from cache.store import PackError
from cache.survey import Progress, survey


def inspect(images: Path, progress: Progress | None = None) -> list[Row]:
    """Look at every file of a folder, sorted by path; files beside the class folders only if they are named as images.

    progress: called with (files looked at, files in all). Raises PackError and SurveyError.
    """
    sources = [
        source for source in find_unlabelled(images) if "/" in source.path or named_as_image(source.file)
    ]
    if not sources:
        raise PackError(
            f"{images} holds no images; expected some, or one subfolder a class with images in it"
        )
    looks = survey([source.file for source in sources], progress=progress)
    paths = [source.path for source in sources]
    return judge(paths, [path.rpartition("/")[0].partition("/")[0] for path in paths], looks)


def check_place(images: Path, out: Path) -> None:
    """Find out before the images are looked at, which takes long, that `out` can be written to. Raises PackError."""
    if not images.is_dir():
        return  # `inspect` says so, and nothing was made
    if out.resolve().is_relative_to(images.resolve()):
        raise PackError(
            f"--out {out} lies inside {images}, whose files are inspected; name a folder beside it"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise PackError(
            f"--out {out} is no folder that can be written to ({error.strerror or error}); name another"
        ) from None


def write(rows: Sequence[Row], out: Path) -> None:
    """survey.csv and excluded.csv in the folder `out`, each whole or not at all. Raises PackError."""
    with replacing(out / "survey.csv") as temporary:
        write_rows(rows, temporary)
    with (
        replacing(out / "excluded.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "reason"))
        table.writerows((row.path, row.reason) for row in rows if row.verdict == "exclude")
