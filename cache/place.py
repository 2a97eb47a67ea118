"""Where an image's bytes lie: a file of its own, or a part of a larger one.

Before it: a folder, a tar, or images out of a table. After it: the scan, the packing and thumbnails read.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal, TypeAlias


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


def to_line(place: Place) -> bytes:
    """One line of JSON, for another process."""
    part = [place.start, place.size, place.name] if isinstance(place, ByteRange) else []
    file = place.file if isinstance(place, ByteRange) else place
    return json.dumps([os.fsencode(file).hex(), *part]).encode() + b"\n"


def from_line(line: bytes) -> Place:
    """What `to_line` wrote."""
    name, *part = json.loads(line)
    file = Path(os.fsdecode(bytes.fromhex(name)))
    return ByteRange(file, *part) if part else file
