"""Where an image's bytes lie: a file of its own, or a part of a larger one.

Before it: a folder, a tar, or images out of a table. After it: the scan, the packing and thumbnails read.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`size` bytes of a file from `start` on, used as a `Path` is. name: what they are called there."""

    file: Path
    start: int
    size: int
    name: str

    def __str__(self) -> str:
        """Both names, for a message."""
        return f"{self.name} in {self.file}"

    @property
    def suffix(self) -> str:
        """How its own name ends."""
        return PurePosixPath(self.name).suffix

    def is_file(self) -> bool:
        """Whether the file around it is there."""
        return self.file.is_file()

    def read_bytes(self) -> bytes:
        """Its bytes; fewer if the file was cut short. Raises OSError."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """A stream of its bytes, in memory. Raises OSError."""
        return io.BytesIO(self.read_bytes())


Place: TypeAlias = Path | ByteRange


def length(place: Place) -> int:
    """In bytes. Raises OSError."""
    return place.size if isinstance(place, ByteRange) else place.stat().st_size


def to_line(places: Iterable[Place]) -> bytes:
    """One line of JSON, for another process."""
    return json.dumps([*map(_to_row, places)]).encode() + b"\n"


def from_line(line: bytes) -> list[Place]:
    """What `to_line` wrote."""
    return [_from_row(*row) for row in json.loads(line)]


def _to_row(place: Place) -> list[str | int]:
    part: list[str | int] = [place.start, place.size, place.name] if isinstance(place, ByteRange) else []
    file = place.file if isinstance(place, ByteRange) else place
    return [os.fsencode(file).hex(), *part]


def _from_row(name: str, *part: Any) -> Place:
    file = Path(os.fsdecode(bytes.fromhex(name)))
    return ByteRange(file, *part) if part else file
