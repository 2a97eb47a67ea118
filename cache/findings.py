"""What a survey found of every image, as a table: survey.csv, row by row.

Before it: looks at the files. After it: `pack` leaves out what excluded.csv names, and a person works through the page.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Final, Literal, get_args

from greyhound.cache.store import PackError

Finding = Literal[
    "undecodable",
    "truncated",
    "bomb",
    "grayscale",
    "exact-duplicate",
    "near-duplicate",
    "label-issue",
    "odd-size",
    "dark",
    "bright",
    "blurred",
    "wrong-extension",
    "transcoded",
    "animated",
    "cmyk",
]
FINDINGS: Final[tuple[Finding, ...]] = get_args(Finding)
"""In the order in which a person should look at them."""
Verdict = Literal["keep", "exclude"]
WRONG: Final = "which has another label: at least one of them is wrong"
"""Ends the reason of a twin that excludes an image of its own class's as well."""


@dataclass(frozen=True, slots=True)
class Row:
    """One image in survey.csv; the columns are these fields, `label` under the name `class`.

    path: relative to the surveyed folder, forward slashes. label: the class folder's name. width, height: pixels, after
    EXIF rotation. orientation: EXIF, 1..8. colourfulness: Hasler & Suesstrunk 2003. mean_luma: 0..255. perceptual_hash:
    hexadecimal, empty where nothing decodes. of: the path of the twin, for the two kinds of duplicate. verdict: what the
    machine would do, reason: why, in words for a person.
    """

    path: str
    label: str
    format: str = ""
    width: int = 0
    height: int = 0
    bytes: int = 0
    orientation: int = 1
    colourfulness: float = 0.0
    mean_luma: float = 0.0
    sharpness: float = 0.0
    sha256: str = ""
    perceptual_hash: str = ""
    findings: tuple[Finding, ...] = ()
    of: str = ""
    verdict: Verdict = "keep"
    reason: str = ""


COLUMNS: Final = tuple("class" if field.name == "label" else field.name for field in fields(Row))


@dataclass(frozen=True)
class Rows:
    """survey.csv, read anew whenever it is gone through, and never held. Raises PackError then."""

    file: Path

    def __iter__(self) -> Iterator[Row]:
        """Its rows, in order."""
        return read_rows(self.file)


@dataclass(frozen=True)
class Lines:
    r"""What a csv.writer writes to, for lines that end in \n.

    It is not told so: of \r and \n it quotes those that end its lines, and a file may have either in its name.
    """

    stream: IO[str]

    def write(self, row: str) -> int:
        """One row."""
        return self.stream.write(row.removesuffix("\r\n") + "\n")


def write_rows(rows: Iterable[Row], file: Path) -> None:
    """survey.csv. Raises OSError."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(Lines(stream))
        table.writerow(COLUMNS)
        table.writerows(map(_cells, rows))


def read_rows(file: Path) -> Iterator[Row]:
    """survey.csv back, row by row. Raises PackError."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            yield from map(_row, csv.DictReader(stream))
    except OSError as error:
        raise PackError(f"{file} cannot be read ({error.strerror}); expected survey.csv") from None
    except (csv.Error, UnicodeDecodeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise PackError(
            f"{file} is no survey.csv ({error}); make it again: greyhound survey IMAGES --out DIR"
        ) from None


def _cells(row: Row) -> list[object]:
    values = [getattr(row, field.name) for field in fields(Row)]
    return [
        ";".join(value) if isinstance(value, tuple) else f"{value:.3f}" if isinstance(value, float) else value
        for value in values
    ]


def _row(cells: dict[str, str]) -> Row:
    findings = tuple(name for name in FINDINGS if name in cells["findings"].split(";"))
    numbers = {name: int(cells[name]) for name in ("width", "height", "bytes", "orientation")}
    figures = {name: float(cells[name]) for name in ("colourfulness", "mean_luma", "sharpness")}
    words = {name: cells[name] for name in ("path", "format", "sha256", "perceptual_hash", "of", "reason")}
    verdict: Verdict = "exclude" if cells["verdict"] == "exclude" else "keep"
    return Row(label=cells["class"], findings=findings, verdict=verdict, **numbers, **figures, **words)  # type: ignore[arg-type]
