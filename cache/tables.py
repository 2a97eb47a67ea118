"""Tables that a person brings, as an editor or Excel saved them: manifests, exclusions, decisions, splits.

Before it: a CSV file. After it: rows by column name. What is plain is taken: UTF-8 or UTF-16, columns divided
by comma, semicolon or tab, a header in any case. What would have to be guessed is refused.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from greyhound.cache.store import PackError

Value = TypeVar("Value")
DELIMITERS: Final = (",", ";", "\t")
_START: Final = re.compile(r"[\r\n]*(?:sep=([,;|\t])[\r\n]+)?", re.IGNORECASE)
"""Blank lines, and the one in which Excel says its delimiter."""
_SAVE: Final = 'in Excel, save it as "CSV UTF-8"'
_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Line:
    """One row. number: of the line that it ends on, from 1. cells: lower-case column name -> text."""

    number: int
    cells: dict[str, str]

    @property
    def path(self) -> str:
        """Relative to the packed folder."""
        return self.cells["path"]


def read_table(
    file: Path, expected: str, wanted: Collection[str], check: Callable[[Sequence[str]], None]
) -> list[Line]:
    """Every row that is not empty. Raises PackError.

    expected: what the file should be, for messages. wanted: columns, by which the delimiter is found.
    check: called with the column names, in lower case, before the rows are read; it may refuse them.
    """
    try:
        if (data := file.read_bytes()).startswith(b"PK\x03\x04"):
            raise PackError(f"{file} is an Excel workbook, or another zip; expected {expected}; {_SAVE}")
        whole = _text(data)
        start = next(_START.finditer(whole))
        if not (text := whole[start.end() :]).strip():
            raise PackError(f"{file} is empty; expected {expected}")
        headers = {each: _header(text, each) for each in start[1] or DELIMITERS}
        delimiter = max(headers, key=lambda each: (len({*wanted} & {*headers[each]}), len(headers[each])))
        check(headers[delimiter])
        return list(_lines(text, delimiter, headers[delimiter], file, len(start[0].splitlines())))
    except OSError as error:
        raise PackError(f"{file} cannot be read ({error.strerror}); expected {expected}") from None
    except UnicodeError:
        raise PackError(f"{file} is no text in UTF-8 or UTF-16; expected {expected}; {_SAVE}") from None
    except csv.Error as error:
        raise PackError(
            f"{file} is no CSV ({error}); expected {expected.removeprefix('a CSV with ')}"
        ) from None


def unique_by_path(rows: list[Line], file: Path) -> dict[str, Line]:
    """The lines by path; one may come twice, but not say two things of one file. Raises PackError."""
    found: dict[str, Line] = {}
    for row in rows:
        if not row.path:
            raise PackError(f"{file} names no path in line {row.number}; expected one in every line")
        first = found.setdefault(row.path, row)
        if first.cells != row.cells:
            what = f"names {row.path!r} in line {first.number} and, with other words, in line {row.number}"
            raise PackError(f"{file} {what}; expected one line a file: delete one of the two")
    return found


def find_paths(rows: Mapping[str, Value], known: Iterable[str], whose: str) -> dict[str, Value]:
    """The rows by the paths of the images that they mean. Raises PackError.

    A path is taken as it is written. Where it is none of the images, it means the only one that differs from
    it in backslashes, in "./" before it, or in how Unicode writes a letter.
    """
    exact, alike = {*known}, defaultdict[str, list[str]](list)
    if exact.issuperset(rows):
        return dict(rows)
    for path in exact:
        alike[_plain(path)].append(path)
    found, unknown = dict[str, Value](), []
    for name, value in rows.items():
        fits = [name] if name in exact else alike[_plain(name)]
        if len(fits) != 1:
            unknown.append(name)
        elif found.setdefault(fits[0], value) != value:
            raise PackError(f"{whose} says two things of {fits[0]!r}; expected one line a file")
    if unknown:
        more = f" and {len(unknown) - 1} more paths that are" if len(unknown) > 1 else ", which is"
        what = f"names {min(unknown)!r}{more} not among the images"
        raise PackError(f"{whose} {what}; expected paths relative to the packed folder")
    return found


def _plain(path: str) -> str:
    return unicodedata.normalize("NFC", path.replace("\\", "/").removeprefix("./"))


def _text(data: bytes) -> str:
    """Raises UnicodeError."""
    return data.decode("utf-16" if data.startswith(_MARKS) else "utf-8-sig")


def _header(text: str, delimiter: str) -> tuple[str, ...]:
    """Not strict: with a wrong delimiter a name in quotes is followed by more."""
    names = next(_reader(text, delimiter, spaced=True, strict=False), ())
    return tuple(" ".join(name.lower().split()) for name in names)


def _lines(text: str, delimiter: str, names: Sequence[str], file: Path, skipped: int) -> Iterator[Line]:
    """Raises PackError, csv.Error."""
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise PackError(f"{file} has two columns {twice[0]!r}; expected each once")
    spaced = bool(re.match(rf"[^\r\n]*{re.escape(delimiter)} ", text))
    reader = _reader(text, delimiter, spaced, strict=True)
    next(reader)
    for cells in reader:
        if any(map(str.strip, cells)):
            number = reader.line_num + skipped
            yield Line(number, _cells(cells, names, number, file))


def _cells(cells: list[str], names: Sequence[str], number: int, file: Path) -> dict[str, str]:
    """By column; missing ones are empty. Raises PackError where there are more than columns."""
    if len(cells) > len(names):
        what = f"has {len(cells)} cells in line {number}, and its first line names {len(names)} columns"
        raise PackError(f'{file} {what}; put a text that holds the delimiter in quotes: "a, b"')
    return dict.fromkeys(names, "") | dict(zip(names, cells, strict=False))


def _reader(text: str, delimiter: str, spaced: bool, strict: bool) -> Any:
    """spaced: a blank after the delimiter belongs to neither cell."""
    lines = io.StringIO(text, newline="")
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=spaced, strict=strict)
