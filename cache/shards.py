"""One file of a pack: its name, its layout, and the checks that it passes before it is read.

Before it: the name of a pack, dogs.arrow; its shards are dogs-00000-of-00004.arrow and so on. After it:
`pack` writes them and `store` opens them as one.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import re
import stat
import weakref
import zlib
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter

from greyhound.cache.index import (
    INDEX,
    OPTIONAL,
    PATHS,
    PackError,
    index_of,
    no_arrow_pack,
    open_arrow,
    other_index,
    read_index,
    read_paths,
    schema,
)
from greyhound.cache.scan import WHITE

FORMAT: Final = 3
"""Version of the layout; any other is refused."""
_METADATA: Final = b"greyhound"
_CHECKSUM: Final = b"greyhound_crc32"
_SHARD: Final = re.compile(r"(?P<pack>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})")
MAX_SHARDS: Final = 99_999


@dataclass(frozen=True)
class Excluded:
    """A file that was left out, and why. thumbnail: a small JPEG in base64, if anything could be shown."""

    path: str
    reason: str
    detail: str = ""
    thumbnail: str | None = None


@dataclass(frozen=True)
class Header:
    """What a pack says of itself, in its schema's metadata.

    classes: names in order, index = label. excluded: what was left out. transcoded: path and reason of what
    was stored as PNG. relabelled: path, its class folder, and the class that a person gave it. lost: paths
    of a person's decisions that were for no file of the folder. background: the colour under what was
    transparent. digest: sha256 over every row's path, label,
    split and content: two packs with one digest hold the same data. shard: which of the `shards` files this
    is; all else is said of the whole pack. split_by, notes: how the split was made, and what a person should
    know of it, in words. empty: split without images -> why.
    """

    classes: tuple[str, ...]
    digest: str
    seed: int
    excluded: tuple[Excluded, ...] = ()
    transcoded: tuple[tuple[str, str], ...] = ()
    relabelled: tuple[tuple[str, str, str], ...] = ()
    lost: tuple[str, ...] = ()
    split_by: str = ""
    notes: tuple[str, ...] = ()
    empty: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT
    shard: int = 0
    shards: int = 1
    background: str = WHITE

    def schema(self, more: Collection[str] = ()) -> pa.Schema:
        """The file's schema with this header in its metadata, and the header's own checksum.

        more: of the optional columns, those that it has.
        """
        text = json.dumps(self, default=vars).encode()
        return schema(more).with_metadata({_METADATA: text, _CHECKSUM: str(zlib.crc32(text)).encode()})

    @staticmethod
    def read(schema: pa.Schema, path: Path) -> Header:
        """The header in `schema`. Raises PackError."""
        metadata = schema.metadata or {}
        if _METADATA not in metadata:
            raise no_arrow_pack(path)
        text = metadata[_METADATA]
        try:
            if int(metadata[_CHECKSUM]) != zlib.crc32(text):
                raise ValueError("its checksum is another")
            version = json.loads(text)["format"]
            if not isinstance(version, int):
                raise TypeError("its version is no number")
            if version == FORMAT:
                return _header().validate_json(text, strict=True)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"has a corrupt header ({type(error).__name__})"
            raise PackError(f"{path} {what}; pack the images again") from None
        if version < FORMAT:
            older = f"pack format {version}, older than {FORMAT}, the one that is read here"
            raise PackError(f"{path} has {older}; pack the images again")
        newer = f"pack format {version}, newer than {FORMAT}, the newest known here"
        raise PackError(f"{path} has {newer}; update Greyhound")


_header: Final = cache(lambda: TypeAdapter(Header))  # takes longer to make than a header to read


def shard_paths(pack: Path, count: int) -> list[Path]:
    """The files of a pack in so many shards; one is the pack itself."""
    if count == 1:
        return [pack]
    return [pack.with_name(f"{pack.stem}-{index:05d}-of-{count:05d}{pack.suffix}") for index in range(count)]


def find(pack: Path) -> list[Path]:
    """The files of a pack: itself, or its shards in order, by its name or a shard's. Raises PackError."""
    named = _SHARD.fullmatch(pack.stem)
    if pack.exists() and not named:
        return [pack]
    whole = pack.with_name(f"{named['pack']}{pack.suffix}") if named else pack
    counts = counts_beside(whole)
    if not counts:
        return [pack]
    if len(counts) > 1:
        what = f"is there in {counts[0]} shards and in {counts[1]}"
        raise PackError(f"{whole} {what}; expected one pack of the name: remove the other")
    paths = shard_paths(whole, counts[0])
    missing = [path for path in paths if not path.exists()]
    if missing:
        what = f"has {len(missing)} of its {len(paths)} shards missing, the first {missing[0].name}"
        raise PackError(f"{whole} {what}; copy the pack again, or pack the images again")
    return paths


def counts_beside(pack: Path) -> list[int]:
    """Of how many shards those are that have the pack's name, ascending."""
    files = pack.parent.iterdir() if pack.parent.is_dir() else ()
    matches = (_SHARD.fullmatch(file.stem) for file in files if file.suffix == pack.suffix)
    return sorted({int(found["count"]) for found in matches if found and found["pack"] == pack.stem})


def check_name_free(pack: Path, count: int) -> None:
    """Refuse to write a pack beside one of the same name in another number of files. Raises PackError."""
    if _SHARD.fullmatch(pack.stem):
        raise PackError(f"{pack} is named as a shard is; name the whole pack, and say --shards")
    there = [other for other in counts_beside(pack) if other != count]
    there += [1] if pack.exists() and count > 1 else []
    if there:
        what = f"is there in another number of files, {there[0]}"
        raise PackError(f"{pack} {what}; remove them first, or name another pack: --out")


def divide(images: int, shards: int) -> list[tuple[int, int]]:
    """Cut so many rows into shards whose sizes differ by one image at most. Raises PackError."""
    most = min(images, MAX_SHARDS)
    if not 1 <= shards <= most:
        raise PackError(f"shards is {shards}; expected 1 to {most}, at least an image in each")
    return list(itertools.pairwise(images * index // shards for index in range(shards + 1)))


class Shard:
    """One file of a pack, mapped. bytes: all of it, uint8, read-only; header: what it says of the pack."""

    def __init__(self, path: Path) -> None:
        """Map the file, and read all but its rows. Raises PackError."""
        self.path, self._descriptor = path, _open(path)
        weakref.finalize(self, os.close, self._descriptor)
        buffer = _map(path, self._descriptor)
        self.header = Header.read(open_arrow(path, buffer).schema, path)
        self.bytes: NDArray[np.uint8] = np.frombuffer(buffer, dtype=np.uint8)
        self._index, self._copied = read_index(path, self.bytes), False
        self._paths: tuple[int, list[str]] = (-1, [])  # the block that was asked for last

    def __len__(self) -> int:
        """Images."""
        return self._index.rows

    @property
    def image_bytes(self) -> int:
        """Bytes of all its images."""
        return self._index.image_bytes

    def read(self, name: str, out: NDArray[Any]) -> None:
        """Read a column of `INDEX` into `out` `[n, ...]`, and compare its checksum. Raises PackError.

        An optional one that the file does not have is the same for every row.
        """
        if name not in self._index.columns:
            out[:] = OPTIONAL[name]
            return
        place, crc32 = self._index.columns[name]
        self._read(place, out.data.cast("B"), crc32)

    def image_path(self, row: int) -> str:
        """Where the image came from. Reads and checks the paths of a block at a time. Raises PackError."""
        block, place = divmod(row, PATHS)
        known = self._paths
        if known[0] != block:
            start, size, crc32 = self._index.paths[block]
            text = bytearray(size)
            self._read(start, memoryview(text), crc32)
            rows = min(PATHS, len(self) - block * PATHS)
            self._paths = known = (block, read_paths(self.path, text, rows))
        return known[1][place]

    def _read(self, place: int, into: memoryview, crc32: int) -> None:
        """Copy bytes of the file and compare their checksum: the copy stays as checked. Raises PackError."""
        self.version()
        done = len(into) if self._copied else 0
        into[:done] = self.bytes[place : place + done].data
        try:
            while done < len(into):  # a call reads 2 GB at most
                done += os.preadv(self._descriptor, [into[done:]], place + done) or len(into)
        except OSError as error:
            raise _no_pack(self.path, error.strerror) from None
        if zlib.crc32(into) != crc32:
            raise other_index(self.path)

    def check_rows(self) -> None:
        """Compare the Arrow rows, which other programs read, with the index. Raises PackError."""
        columns, paths = index_of(self.path, pa.py_buffer(self.bytes))
        for name, values in columns.items():
            known = np.empty(len(self), INDEX[name])
            self.read(name, known)
            if values.tobytes() != known.tobytes():
                raise other_index(self.path)
        if any(path != self.image_path(row) for row, path in enumerate(paths.to_pylist())):
            raise other_index(self.path)

    def copy(self) -> None:
        """Hold the file in memory of our own, whatever becomes of it. Raises PackError."""
        self.version()
        self.bytes = self.bytes.copy()
        self.bytes.flags.writeable = False
        self._copied = True

    def version(self) -> int:
        """Another number whenever somebody wrote to the file, or renamed it, since the last time; never 0.

        Raises PackError where it was cut short: to read what is mapped and gone ends the process.
        """
        if self._copied:
            return 1
        found = os.fstat(self._descriptor)
        if found.st_size < len(self.bytes):
            todo = "copy the pack again, or pack the images again; --originals ram reads it once and for all"
            raise PackError(f"{self.path} was cut short while it was in use; {todo}")
        return hash((found.st_mtime_ns, found.st_ctime_ns)) or 1


def _open(path: Path) -> int:
    """A descriptor of the file. Raises PackError."""
    try:
        if path.is_dir():
            raise PackError(f"{path} is a folder; pack it first: greyhound pack {path} --out {path}.arrow")
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
            raise _no_pack(path, "no regular file")
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise PackError(f"there is no pack at {path}; make one: greyhound pack IMAGES --out {path}") from None
    except OSError as error:
        raise _no_pack(path, error.strerror) from None


def _map(path: Path, descriptor: int) -> pa.Buffer:
    """All of an open file, not read yet. Raises PackError."""
    try:
        return pa.py_buffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    except ValueError:
        raise PackError(f"{path} is no readable pack (it is empty); pack the images again") from None
    except OSError as error:
        raise _no_pack(path, error.strerror) from None


def _no_pack(path: Path, reason: str | None) -> PackError:
    return PackError(f"{path} cannot be opened ({reason}); expected a pack file")
