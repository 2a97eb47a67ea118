"""A table that names images: CSV, JSON lines or Parquet, of any program or as Hugging Face's metadata.csv.

Before it: the table, and images on the disk. After it: `collection.Collection`. Cells are text: the label
001 stays 001, and no is no boolean.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from greyhound.cache.collection import SPLIT_WORDS, Collection, Collector
from greyhound.cache.data_files import are_splits
from greyhound.cache.folder import NAMED, ImageFolder, as_text, find_file, named_as_image, relative
from greyhound.cache.store import HEAVIEST, PackError
from greyhound.cache.tables import read_table

PATHS: Final = (
    *("path", "file_name", "filename", "image", "file"),
    *("file_path", "filepath", "image_path", "img_path"),
)
"""What a column of paths is called, in any case; the first that is there is taken."""
LABELS: Final = ("label", "class", "class_name", "category", "target")
"""What a column of classes is called, unless --label names another."""
OTHERS: Final = ("split", "group", "weight")
SUFFIXES: Final = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Of files that can be nothing but a manifest; a Parquet file may be one too."""
PARQUET: Final = (".parquet", ".pq")
EXPECTED: Final = (
    f"a table with a path ({', '.join(PATHS)}) and a class ({', '.join(LABELS)}, or what --label names)"
)
_METADATA: Final = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_URL: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")

Row = dict[str, Any]
"""Lower-case column name -> what stands there."""


@dataclass(frozen=True)
class Table:
    """names: of the columns, in lower case. rows: each with its line, from 1."""

    file: Path
    names: Sequence[str]
    rows: Sequence[tuple[int, Row]]


@dataclass(frozen=True)
class Columns:
    """Which column says what, "" for one that is not there."""

    path: str
    label: str
    split: str
    group: str
    weight: str


def is_url(source: str) -> bool:
    """Whether it names something elsewhere; `Path` makes one slash of two."""
    return bool(_URL.match(source))


def load(file: Path, label: str = "") -> Table:
    """label: the column of classes that a person named. Raises PackError."""
    if file.suffix.lower() in (".csv", ".tsv"):
        names: list[str] = []
        lines = read_table(file, EXPECTED, (*PATHS, *LABELS, *OTHERS), names.extend)
        return Table(file, names, [(line.number, line.cells) for line in lines])
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        rows = _json_lines(file)
        return Table(file, [*dict.fromkeys(name for _, row in rows for name in row)], rows)
    from greyhound.cache.parquet import read_rows

    names, cells = read_rows(file, {*PATHS, *LABELS, *OTHERS, label.lower() or PATHS[0]})
    return Table(file, names, [*enumerate(cells, start=1)])


def _json_lines(file: Path) -> list[tuple[int, Row]]:
    """Raises PackError."""
    rows, number = [], 0
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    whole = json.loads(line)
                    row = {name.lower(): value for name, value in whole.items()}
                    if len(row) < len(whole):
                        what = f"has two names that differ only in case in line {number}"
                        raise PackError(f"{file} {what} ({', '.join(whole)[:100]}); expected each once")
                    rows.append((number, row))
    except OSError as error:
        raise PackError(f"{file} cannot be read ({error.strerror}); expected {EXPECTED}") from None
    except UnicodeError:
        raise PackError(f"{file} is no text in UTF-8; expected {EXPECTED}") from None
    except (ValueError, AttributeError, RecursionError):
        wanted = f"expected {EXPECTED}, one object in every line"
        raise PackError(f"{file} has no JSON object in line {number}; {wanted}") from None
    if not rows:
        raise PackError(f"{file} is empty; expected {EXPECTED}")
    return rows


def choose_columns(table: Table, label: str = "") -> Columns:
    """label: the column of classes that a person named. Raises PackError."""
    labels = (label.lower(),) if label else LABELS
    path, kind = (next((each for each in known if each in table.names), "") for known in (PATHS, labels))
    if not (path and kind):
        wanted = f"a column {label!r}, which --label names" if path and label else EXPECTED
        raise PackError(f"{table.file} has the columns {', '.join(table.names)[:100]}; expected {wanted}")
    said = [each if any(row.get(each) not in (None, "") for _, row in table.rows) else "" for each in OTHERS]
    return Columns(path, kind, *said)


def metadata_below(folder: Path) -> list[Path]:
    """The tables of a Hugging Face image folder: in it, or in the folders of its splits; perhaps none."""
    beside = sorted(each for each in folder.iterdir() if each.name.lower() in SPLIT_WORDS and each.is_dir())
    for places in ([folder], beside):
        files = (
            next((place / name for name in _METADATA if (place / name).is_file()), None) for place in places
        )
        if found := [file for file in files if file]:
            return found
    return []


def read(file: Path, label: str = "") -> Collection:
    """The images that a table names, below its folder or anywhere. Raises PackError."""
    images = Collector(str(file), str(file.absolute().parent))
    notes = _read(load(file, label), file.parent, "", label, images)
    return _split_by_folders(images.collect(notes, f"as {as_text(file.name)} says"))


def read_folder(folder: Path, tables: Sequence[Table], label: str = "") -> Collection:
    """The images of a folder that its `metadata_below` name; others are left out. Raises PackError."""
    images, notes = Collector(str(folder), str(folder)), list[str]()
    named = [SPLIT_WORDS.get(table.file.parent.name.lower(), "") for table in tables]
    splits = named if are_splits(named) else [""] * len(tables)
    for table, split in zip(tables, splits, strict=True):
        notes += _read(table, folder, split, label, images)
    name = tables[0].file.name
    for each in ImageFolder(folder).files():
        if named_as_image(each) and not images.knows(path := relative(each, folder)):
            images.leave_out(each, path, "", "not listed", f"{name} has no line for it")
    split_by = "as the folders say" if any(splits) else f"as {name} says"
    found = _split_by_folders(images.collect(notes, split_by))
    return replace(found, notes=[*found.notes, *_say_folders(found, name)])


def _say_folders(found: Collection, name: str) -> list[str]:
    """That class folders do not count, where their names are not the classes."""
    folders = [PurePosixPath(each.path).parent.name for each in found.samples]
    others = {each for each in folders if each and each.lower() not in SPLIT_WORDS}
    pairs = zip(folders, found.samples, strict=True)
    if len(others) < 2 or all(folder == found.classes[each.label] for folder, each in pairs):
        return []
    few = ", ".join(sorted(others)[:NAMED])
    return [
        f"{name} says the classes, and the names of the folders ({few}) do not: move it away if they should"
    ]


def _split_by_folders(found: Collection) -> Collection:
    """Where no column names splits: with those that the first folders of the paths are named after."""
    folders = [each.path.partition("/")[0] for each in found.samples]
    said = [SPLIT_WORDS.get(folder.lower(), "") for folder in folders]
    if any(each.split for each in found.samples) or len({*said} - {""}) < 2:
        return found
    if are_splits(said):
        samples = [replace(each, split=split) for each, split in zip(found.samples, said, strict=True)]
        return replace(found, samples=samples, split_by="as the folders say")
    named = ", ".join(sorted({folder for folder, split in zip(folders, said, strict=True) if split}))
    why = "images lie outside of them" if "" in said else "none is for training"
    return replace(found, notes=[*found.notes, f"the folders {named} are not taken as splits: {why}"])


def _read(table: Table, home: Path, split: str, label: str, images: Collector) -> list[str]:
    """Add every row; what is to be said of the table. Raises PackError."""
    columns = choose_columns(table, label)
    taken = {columns.path, columns.label, *OTHERS}
    lines = _RowReader(table.file, home, columns, split, images)
    for number, row in table.rows:
        lines.add(number, row)
    unused = [name or "one without a name" for name in table.names if name not in taken]
    return [f"columns of {table.file.name} that are not used: {', '.join(unused)[:200]}"] if unused else []


def _plain(place: Path) -> Path:
    """Absolute, without . and .. in it; links are left as they are."""
    return Path(os.path.normpath(place.absolute()))


class _RowReader:
    """Adds the images that the lines of one table name."""

    def __init__(self, file: Path, home: Path, columns: Columns, split: str, images: Collector) -> None:
        self.file, self.columns, self.split, self.images = file, columns, split, images
        self.home = _plain(home)
        self.kinds = dict[str, int]()

    def add(self, number: int, row: Row) -> None:
        """Raises PackError."""
        names = self.columns
        name, label, said, group, weight = (
            self._text(row.get(column) if column else None, column, number)
            for column in (names.path, names.label, names.split, names.group, names.weight)
        )
        if not name:
            raise PackError(f"{self.file} names no path in line {number}; expected one in every line")
        if is_url(name):
            what = f"names the address {name[:100]!r} in line {number}"
            raise PackError(f"{self.file} {what}; expected a file: download it first")
        self._check(number, row.get(names.label))
        try:
            place = self._find(name)
            there = place.is_file()
        except OSError as error:
            what = f"has {name[:60]!r} in line {number}, which cannot be a path ({error.strerror})"
            raise PackError(f"{self.file} {what}; expected the path of a file") from None
        path = relative(place, self.home) if place.is_relative_to(self.home) else as_text(place.as_posix())
        if not label:
            self.images.leave_out(place, path, "", "no label", f"line {number}")
        elif not there:
            self.images.leave_out(place, path, label, "missing file", f"line {number}")
        else:
            heavy = self._weigh(number, weight)
            self.images.add(place, path, label, said or self.split, group, heavy, f"line {number}")

    def _find(self, name: str) -> Path:
        """Below the table's folder, or anywhere; with / for Windows' backslash where only that is there."""
        found = find_file(self.file.parent, name)
        if "\\" in name and not found.is_file():
            other = find_file(self.file.parent, name.replace("\\", "/"))
            found = other if other.is_file() else found
        return _plain(found)

    def _text(self, value: Any, column: str, number: int) -> str:
        """A cell as text, "" for none. Raises PackError."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, str):
            return value.strip().encode("utf-8", "backslashreplace").decode()
        if type(value) is int or (column == "weight" and isinstance(value, float)):
            return str(value)
        what = f"has {str(value)[:60]} ({type(value).__name__}) as the {column} in line {number}"
        raise PackError(f"{self.file} {what}; expected text or a whole number")

    def _weigh(self, number: int, said: str) -> float:
        """What an image weighs, as a pack keeps it; 1 where nothing is said. Raises PackError."""
        try:
            weight = float(said or 1)
        except ValueError:
            weight = math.nan
        if not 0 <= weight <= HEAVIEST:
            what = f"weighs an image by {said[:60]!r} in line {number}"
            raise PackError(f"{self.file} {what}; expected a number from 0, such as 0.5")
        return float(np.float32(weight))

    def _check(self, number: int, label: Any) -> None:
        """Refuse labels of two kinds. Raises PackError."""
        if label not in (None, ""):
            kind = "text" if isinstance(label, str) else "a number"
            self.kinds.setdefault(kind, number)
            if len(self.kinds) > 1:
                (one, first), (other, second) = self.kinds.items()
                what = f"has {one} as the {self.columns.label} in line {first} and {other} in line {second}"
                raise PackError(f"{self.file} {what}; expected one kind: put all in quotes")
