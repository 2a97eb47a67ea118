"""Tables that a person brings, as an editor or Excel saved them: --exclude, --decisions, --split.

Before it: a CSV file. After it: rows by column name. What is plain is taken: UTF-8 or UTF-16, columns divided
by comma, semicolon or tab, a header in any case. What would have to be guessed is refused.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from greyhound.cache.store import PackError

DELIMITERS: Final = (",", ";", "\t")
_START: Final = re.compile(r"[\r\n]*(?:sep=([,;|\t])[\r\n]+)?", re.IGNORECASE)
"""Blank lines, and the one in which Excel says its delimiter."""
_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Line:
    """One row. number: of the line that it ends on, from 1. cells: lower-case column name -> text."""

    number: int
    cells: dict[str, str]

    @property
    def path(self) -> str:
        """Relative to the packed folder, forward slashes."""
        return self.cells["path"].replace(os.sep, "/")


def read_table(
    file: Path, expected: str, wanted: Collection[str], check: Callable[[Sequence[str]], None]
) -> list[Line]:
    """Every row that is not empty. Raises PackError.

    expected: what the file should be, for messages. wanted: columns, by which the delimiter is found.
    check: called with the column names, in lower case, before the rows are read; it may refuse them.
    """
    try:
        whole = _text(file.read_bytes())
        start = next(_START.finditer(whole))
        if not (text := whole[start.end() :]).strip():
            raise PackError(f"{file} is empty; expected {expected}")
        headers = {each: _header(text, each) for each in start[1] or DELIMITERS}
        delimiter = max(headers, key=lambda each: (len({*wanted} & {*headers[each]}), len(headers[each])))
        check(headers[delimiter])
        return list(_lines(text, delimiter, headers[delimiter], file, len(start[0].splitlines())))
    except OSError as error:
        raise PackError(f"{file} cannot be read ({error.strerror}); expected {expected}") from None
    except (csv.Error, UnicodeError) as error:
        what = expected.removeprefix("a CSV with ")
        raise PackError(f"{file} is no CSV ({error}); expected {what}, in UTF-8 or UTF-16") from None


def once_each(rows: list[Line], file: Path) -> dict[str, Line]:
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


def check_paths(names: Collection[str], known: Collection[str], whose: str) -> None:
    """Refuse a path that is none of the images: a mistake, perhaps in its path. Raises PackError."""
    if unknown := set(names).difference(known):
        more = f" and {len(unknown) - 1} more paths that are" if len(unknown) > 1 else ", which is"
        what = f"names {min(unknown)!r}{more} not among the images"
        raise PackError(f"{whose} {what}; expected paths relative to the packed folder")


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
