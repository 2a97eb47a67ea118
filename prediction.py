"""Predictions: which files are asked for, and a row for each as CSV, JSON lines, Parquet or plain lines.

Before it: words of a command line. Between: `trained.predict` or `exported`, which look at the files. After
it: the rows. Nothing here needs torch.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from greyhound.cache.classes import class_of
from greyhound.cache.cli import note, plain
from greyhound.cache.errors import UserError
from greyhound.cache.files import replacing
from greyhound.cache.folder import ImageFolder, as_text, check_writable
from greyhound.cache.scan import ImageInfo
from greyhound.cache.survey.table import UnixLines

STDIN: Final = "-"
"""The word for a list of files on standard input."""
_GROUP: Final = 1024
"""Rows of a group in a Parquet file."""
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file to look at. path: as it was named, as valid text. true_class: the one that its folder names."""

    file: Path
    path: str
    true_class: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What became of a file. probabilities: float64 `[K]`; None where `error` says why there are none."""

    image: ImageFile
    probabilities: NDArray[np.float64] | None = None
    error: str = ""


def error_of(image: ImageFile, info: ImageInfo) -> str:
    """Why a file that was scanned cannot be looked at; "" where it can."""
    if info.problem == "undecodable" and not os.access(image.file, os.F_OK):
        return "there is no such file"
    return f"{info.problem} ({info.detail})" if info.problem else ""


def say_uncalibrated(why: str) -> None:
    """Say, on standard error, why the probabilities are not calibrated; nothing where they are."""
    note(why and f"the probabilities are not calibrated: {why}")


def expand(words: Sequence[str]) -> list[str]:
    """The words, patterns replaced by what they match, of which a folder stands for all in it.

    Raises UserError where there is nothing.
    """
    found = []
    for word in words:
        there = word == STDIN or os.path.lexists(word)
        matches = [word] if there else _outermost(glob.glob(word, recursive=True))  # noqa: PTH207 - as typed
        if not matches:
            _refuse_closed(word)
            raise UserError(f"there is no {word}; expected files, folders or patterns, or - for a list")
        found += matches
    return found


def _refuse_closed(word: str) -> None:
    """Refuse a path through a folder that may not be entered: nothing can be said of what is there."""
    try:
        os.lstat(word)
    except PermissionError as error:
        raise UserError(
            f"{word} cannot be looked at ({error.strerror}); name files that you may read"
        ) from None
    except (OSError, ValueError):  # there is no such file, or there can be none
        return


def _outermost(matches: list[str]) -> list[str]:
    """Those that lie in no folder among them, sorted."""
    folders = {path for match in matches if (path := Path(match)).is_dir()}
    return sorted(match for match in matches if folders.isdisjoint(Path(match).parents))


def find(words: Sequence[str], classes: Sequence[str]) -> Iterator[ImageFile]:
    """The files that words name, in order: each folder's by name, hidden ones left alone. Raises UserError.

    A file in a subfolder that is named as a class has that true class.
    """
    for word in words:
        if word == STDIN:
            yield from (ImageFile(Path(name), as_text(name)) for name in _listed(sys.stdin.buffer.read()))
        elif Path(word).is_dir():
            yield from _inside(Path(word), {*classes})
        else:
            yield ImageFile(Path(word), as_text(word))


def _listed(data: bytes) -> list[str]:
    """The names in a list, one a line, or ended by NUL where there is one."""
    names = data.split(b"\0") if b"\0" in data else data.splitlines()
    return [os.fsdecode(name) for name in names if name]


def _inside(folder: Path, classes: set[str]) -> Iterator[ImageFile]:
    others, labelled, empty = set[str](), False, True
    for file in ImageFolder(folder).files():
        empty = False
        name = as_text(file.relative_to(folder).parts[0]) if file.parent != folder else ""
        true = class_of(name, classes)
        labelled |= bool(true)
        if name and not true:
            others.add(name)
        yield ImageFile(file, as_text(str(file)), true)
    if empty:
        raise UserError(f"{folder} holds no files; expected images")
    if labelled and others:
        note(f"{folder / min(others)} is named as no class; what is in it has no true class")


def columns(classes: Sequence[str], top: int, every: bool, labelled: bool) -> dict[str, type]:
    """The names of a row's values, in order, and their types. every: the probability of every class too."""
    found: dict[str, type] = {"path": str, "class": str, "probability": float}
    for place in range(2, min(top, len(classes)) + 1):
        found |= {f"class_{place}": str, f"probability_{place}": float}
    found |= {"true_class": str, "right": bool} if labelled else {}
    found["error"] = str
    return found | ({f"probability of {name}": float for name in classes} if every else {})


def to_row(prediction: Prediction, classes: Sequence[str], names: Mapping[str, type]) -> Row:
    """The values of a row, None where there is none. names: as `columns` gives them."""
    image, probabilities = prediction.image, prediction.probabilities
    row: Row = dict.fromkeys(names) | {"path": image.path, "error": prediction.error or None}
    if image.true_class:
        row["true_class"] = image.true_class
    if probabilities is None:
        return row
    order = (-probabilities).argsort(kind="stable")
    for place, label in enumerate(order.tolist(), start=1):
        ending = f"_{place}" if place > 1 else ""
        if f"class{ending}" not in names:
            break
        row |= {f"class{ending}": classes[label], f"probability{ending}": float(probabilities[label])}
    if image.true_class:
        row["right"] = row["class"] == image.true_class
    if f"probability of {classes[0]}" in names:
        row |= {f"probability of {name}": float(probabilities[label]) for label, name in enumerate(classes)}
    return row


@contextmanager
def open_rows(out: Path | None, names: Mapping[str, type]) -> Iterator[Callable[[Row], None]]:
    """What writes a row, at once: to a .csv, .jsonl or .parquet file, or to standard output.

    There it is CSV, or lines for a reader where that is a terminal. A Parquet file is there at the end of
    the block, or not at all; of the others a program that is killed leaves whole rows. Raises UserError.
    """
    if out is None:
        lines = _say if sys.stdout.isatty() else _csv_line
        if lines is _csv_line:
            _print(_csv_line(dict(zip(names, names, strict=True))))
        yield lambda row: _print(lines(row))
        return
    of_block = None
    try:
        with (_parquet if out.suffix.lower() == ".parquet" else _lines)(out, names) as write:
            try:
                yield lambda row: _write(write, row, out)
            except OSError as error:
                of_block = error
                raise
    except OSError as error:
        if error is of_block:
            raise
        raise _unwritable(out, error) from None


def check_out(out: Path) -> None:
    """Check that a file can be written, its folder made, before any work. Raises UserError."""
    try:
        check_writable(out.absolute().parent)
    except OSError as error:
        raise _unwritable(out, error) from None


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(f"{out} cannot be written ({error.strerror or error}); name another: --out")


def _write(write: Callable[[Row], None], row: Row, out: Path) -> None:
    try:
        write(row)
    except OSError as error:
        raise _unwritable(out, error) from None


@contextmanager
def _lines(out: Path, names: Mapping[str, type]) -> Iterator[Callable[[Row], None]]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb", buffering=0) as file:
        as_json = out.suffix.lower() == ".jsonl"
        if not as_json:
            file.write(_csv_line(dict(zip(names, names, strict=True))).encode())
        yield lambda row: _put(file, (_json_line if as_json else _csv_line)(row))


def _put(file: io.RawIOBase | Any, line: str) -> None:
    """In one call of the system, of which a killed program leaves all or nothing."""
    data = line.encode()
    while data:
        data = data[file.write(data) :]


def _print(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


def _csv_line(row: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    values = (f"{value:.6f}" if isinstance(value, float) else value for value in row.values())
    csv.writer(UnixLines(stream)).writerow(
        str(value).lower() if value in (True, False) else value for value in values
    )
    return stream.getvalue()


def _json_line(row: Row) -> str:
    rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}
    return json.dumps(rounded, ensure_ascii=False) + "\n"


def _say(row: Row) -> str:
    """For a reader: the classes and their probabilities, and the true class where it is another."""
    if row["error"]:
        return plain(f"{row['path']}: {row['error']}") + "\n"
    places = ["", *(name.removeprefix("class") for name in row if name.startswith("class_"))]
    found = ", ".join(f"{row[f'class{place}']} {row[f'probability{place}']:.1%}" for place in places)
    wrong = f"; its folder says {row['true_class']}" if row.get("right") is False else ""
    return plain(f"{row['path']}: {found}{wrong}") + "\n"


@contextmanager
def _parquet(out: Path, names: Mapping[str, type]) -> Iterator[Callable[[Row], None]]:
    import pyarrow as pa  # slow, and rarely needed
    from pyarrow import parquet

    kinds = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
    schema, rows = pa.schema({name: kinds[kind] for name, kind in names.items()}), list[Row]()
    with (
        replacing(out) as temporary,
        temporary.open("wb") as stream,
        parquet.ParquetWriter(stream, schema) as writer,
    ):

        def write(row: Row) -> None:
            rows.append(row)
            if len(rows) >= _GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows.clear()

        yield write
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
