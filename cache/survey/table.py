"""What a survey found of every image, as tables: survey.csv, and excluded.csv for `pack --exclude`.

Before it: rows from `findings`. After it: a person works through the page, and `pack` leaves out what
excluded.csv names.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, Final, Literal

from greyhound.cache.files import replacing_all
from greyhound.cache.folder import check_outside, check_writable
from greyhound.cache.selection import FINDINGS, Finding, read_findings
from greyhound.cache.store import PackError

Verdict = Literal["keep", "exclude"]


@dataclass(frozen=True, slots=True)
class Row:
    """One image in survey.csv; the columns are these fields, `label` under the name `class`.

    path: relative to the surveyed folder, forward slashes. label: the class folder's name. What was measured
    is as in `ImageInfo`. of: the path of the twin, for the two kinds of duplicate. causes: the findings that
    exclude it, the first one first. reason: what was found, in words for a person.
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
    findings: tuple[Finding, ...] = ()
    of: str = ""
    causes: tuple[Finding, ...] = ()
    reason: str = ""

    @property
    def verdict(self) -> Verdict:
        """What the machine would do."""
        return "exclude" if self.causes else "keep"


_NAMES: Final = tuple(field.name for field in fields(Row))
COLUMNS: Final = ("path", "class", *_NAMES[2:-2], "verdict", *_NAMES[-2:])


@dataclass(frozen=True)
class Rows:
    """survey.csv, read anew whenever it is gone through, and never held. Raises PackError then."""

    file: Path

    def __iter__(self) -> Iterator[Row]:
        """Its rows, in order."""
        try:
            with self.file.open(newline="", encoding="utf-8-sig") as stream:
                yield from map(_row, csv.DictReader(stream))
        except OSError as error:
            raise PackError(f"{self.file} cannot be read ({error.strerror}); expected survey.csv") from None
        except (csv.Error, UnicodeDecodeError, KeyError, ValueError, TypeError, AttributeError) as error:
            todo = "make it again: greyhound survey IMAGES --out DIR"
            raise PackError(f"{self.file} is no survey.csv ({error}); {todo}") from None


@dataclass(frozen=True)
class UnixLines:
    r"""What a csv.writer writes to, for lines that end in \n; told so, it would not quote a \r."""

    stream: IO[str]

    def write(self, row: str) -> int:
        """One row."""
        return self.stream.write(row.removesuffix("\r\n") + "\n")


def check_place(images: Path, out: Path) -> None:
    """Check before the scan that the folder `out` can be written to. Raises PackError."""
    if not images.is_dir():
        return  # `inspect` says so
    check_outside(out, images)
    try:
        check_writable(out)
    except OSError as error:
        what = f"is no folder that can be written to ({error.strerror or error})"
        raise PackError(f"--out {out} {what}; name another") from None


def write(rows: Iterable[Row], out: Path) -> None:
    """survey.csv and excluded.csv in the folder `out`, both whole or not at all. Raises WriteError."""
    with (
        replacing_all([out / "survey.csv", out / "excluded.csv"]) as (survey, excluded),
        survey.open("w", newline="", encoding="utf-8") as whole,
        excluded.open("w", newline="", encoding="utf-8") as some,
    ):
        table, listed = csv.writer(UnixLines(whole)), csv.writer(UnixLines(some))
        table.writerow(COLUMNS)
        listed.writerow(("path", "reason", "causes"))
        for row in rows:
            table.writerow(_cells(row))
            if row.causes:
                listed.writerow((row.path, row.reason, ";".join(row.causes)))


def _cells(row: Row) -> list[object]:
    values = [getattr(row, "label" if name == "class" else name) for name in COLUMNS]
    values = [";".join(value) if isinstance(value, tuple) else value for value in values]
    return [f"{value:.3f}" if isinstance(value, float) else value for value in values]


def _row(cells: dict[str, str]) -> Row:
    findings = tuple(name for name in FINDINGS if name in cells["findings"].split(";"))
    numbers = {name: int(cells[name]) for name in ("width", "height", "bytes", "orientation")}
    figures = {name: float(cells[name]) for name in ("colourfulness", "mean_luma", "sharpness")}
    words = {name: cells[name] for name in ("path", "format", "sha256", "of", "reason")}
    known: dict[str, Any] = {**numbers, **figures, **words, "label": cells["class"], "findings": findings}
    return Row(causes=read_findings(cells["causes"]), **known)
