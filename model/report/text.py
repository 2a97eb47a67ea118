"""Numbers as a reader wants them: shares, counts, sizes, times; a dash where nothing was measured.

Before it: values of a run folder's files, which may be anything. After it: the report, and dry_run's lines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import PurePath
from typing import Any, Final, TypeGuard

from rich import filesize

_FOLDERS: Final = re.compile(r"(?<![\w.~:/-])/(?:(?:[^/\s'\"]+|[^/\s'\".,;:][^/'\".,;:]*[^/\s'\".,;:])/)+")
"""The folders of an absolute path within a text. A folder's name may have blanks, if no other marks."""


def percent(value: object, unit: str = "\N{NARROW NO-BREAK SPACE}%") -> str:
    """A share as "93.1 %", or without the unit; a dash where there is none. Below 1 it is never 100.0."""
    if not finite(value):
        return "–"
    return f">99.9{unit}" if 0.9995 <= value < 1 - 1e-9 else f"{100 * value:.1f}{unit}"


def flatten(content: object, place: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values of a nested object by dotted names; objects in a list are counted from 0."""
    if isinstance(content, list) and any(isinstance(each, dict) for each in content):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        yield place, content
        return
    for key, value in content.items():
        yield from flatten(value, f"{place}.{key}".removeprefix("."))


def share(value: object) -> str:
    """A share as a number from 0 to 1, for a place on a bar; 0 where there is none."""
    return f"{min(max(value, 0), 1):.4f}" if finite(value) else "0"


def number(value: object, digits: int = 3) -> str:
    """A number with this many decimals; very small and very large ones with a power of ten."""
    if not finite(value):
        return "–"
    return f"{value:.{digits}f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.2e}"


def count(value: object) -> str:
    """A whole number with commas between the thousands."""
    return f"{value:,.0f}" if finite(value) else "–"


def size(value: object) -> str:
    """A number of bytes in the unit that keeps it short."""
    return filesize.decimal(int(value)) if finite(value) else "–"


def duration(value: object) -> str:
    """Seconds as "8.2 s", "12 min" or "3 h 20 min"."""
    if not finite(value):
        return "–"
    if value < 120:
        return f"{value:.1f} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def clock(value: object) -> str:
    """Seconds as "0:08", "12:05" or "3:20:00": a column of them is easy to compare."""
    if not finite(value):
        return "–"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def scalar(value: object) -> str:
    """A value of the recipe as text: yes or no, short numbers, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(scalar(item) for item in value) or "none"
    return "none" if value is None or value == "" else bare(str(value))


def bare(text: object) -> str:
    """A text without the folders of its absolute paths: the page may be given to others."""
    path = PurePath(str(text or ""))
    return path.name if path.is_absolute() else _FOLDERS.sub("", str(text or ""))


def day(value: object) -> str:
    """A time in ISO 8601, in words; any other value as it is."""
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return str(value or "")
    return f"{time.day} {time:%B %Y, %H:%M} {time.tzname() or ''}".rstrip()


def spaced(name: str) -> str:
    """A key as words."""
    return name.replace("_", " ")


def finite(value: object) -> TypeGuard[float]:
    """Whether it is a number, and no infinite one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
