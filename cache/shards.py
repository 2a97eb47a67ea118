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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter

from greyhound.cache.errors import UserError
from greyhound.cache.scan import WHITE

FORMAT: Final = 2
"""Version of the layout; a newer one is refused."""
SPLITS: Final = ("train", "val", "test")
_COLUMNS: Final = {
    "image": pa.large_binary(),
    "label": pa.int32(),
    "split": pa.dictionary(pa.int8(), pa.string()),
    "width": pa.int32(),
    "height": pa.int32(),
    "orientation": pa.uint8(),
    "mean_luma": pa.float32(),
    "crc32": pa.uint32(),
    "path": pa.string(),
}
SCHEMA: Final = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()])
_METADATA: Final = b"greyhound"
_CHECKSUM: Final = b"greyhound_crc32"
_SHARD: Final = re.compile(r"(?P<pack>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})")
MAX_SHARDS: Final = 99_999


class PackError(UserError):
    """The pack, or what was to become one, is not what was expected; the message is one line for the user."""


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
    is; index_crc32: `index_checksum` of its rows; all else is said of the whole pack. split_by, notes: how
    the split was made, and what a person should know of it, in words. empty: split without images -> why.
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
    index_crc32: int = 0
    shard: int = 0
    shards: int = 1
    background: str = WHITE

    def schema(self) -> pa.Schema:
        """The file's schema with this header in its metadata, and the header's own checksum."""
        text = json.dumps(self, default=vars).encode()
        return SCHEMA.with_metadata({_METADATA: text, _CHECKSUM: str(zlib.crc32(text)).encode()})

    @staticmethod
    def read(schema: pa.Schema, path: Path) -> Header:
        """The header in `schema`. Raises PackError."""
        metadata = schema.metadata or {}
        if _METADATA not in metadata:
            raise _no_arrow_pack(path)
        text = metadata[_METADATA]
        try:
            if int(metadata[_CHECKSUM]) != zlib.crc32(text):
                raise ValueError("its checksum is another")
            version = json.loads(text)["format"]
            if version <= FORMAT:
                return TypeAdapter(Header).validate_json(text, strict=True)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"has a corrupt header ({type(error).__name__})"
            raise PackError(f"{path} {what}; pack the images again") from None
        newer = f"pack format {version}, newer than {FORMAT}, the newest known here"
        raise PackError(f"{path} has {newer}; update Greyhound")


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
    """Cut so many rows into shards of equal numbers of images, but for one. Raises PackError."""
    most = min(images, MAX_SHARDS)
    if not 1 <= shards <= most:
        raise PackError(f"shards is {shards}; expected 1 to {most}, at least an image in each")
    return list(itertools.pairwise(images * index // shards for index in range(shards + 1)))


class Shard:
    """One file of a pack, mapped. starts, stops: int64 `[n]`, where in `bytes` each image lies."""

    def __init__(self, path: Path) -> None:
        """Map the file, and check all that it says of its rows. Raises PackError."""
        self.path, self._descriptor = path, _open(path)
        weakref.finalize(self, os.close, self._descriptor)
        try:
            buffer = pa.py_buffer(mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ))
        except ValueError:
            raise PackError(f"{path} is no readable pack (it is empty); pack the images again") from None
        except OSError as error:
            raise _no_pack(path, error.strerror) from None
        self.table = _read_table(path, buffer)
        self.header = Header.read(self.table.schema, path)
        self.bytes: NDArray[np.uint8] = np.frombuffer(buffer, dtype=np.uint8)
        self.starts, self.stops = _locate(path, buffer, self.table.column("image"))
        columns = dict(zip(self.table.column_names, self.table.columns, strict=True))
        if self.header.index_crc32 != index_checksum(columns):
            what = "labels, splits, sizes or paths are not those that were packed"
            raise PackError(f"{path} is corrupt: {what}; copy it again, or pack the images again")

    def version(self) -> int:
        """Another number whenever somebody wrote to the file, or renamed it, since the last time.

        Raises PackError where it was cut short: to read what is mapped and gone ends the process.
        """
        found = os.fstat(self._descriptor)
        if found.st_size < len(self.bytes):
            todo = "copy the pack again, or pack the images again; --originals ram reads it once and for all"
            raise PackError(f"{self.path} was cut short while it was in use; {todo}")
        return hash((found.st_mtime_ns, found.st_ctime_ns))


def _open(path: Path) -> int:
    """A descriptor of the file. Raises PackError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
            raise _no_pack(path, "no regular file")
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise PackError(f"there is no pack at {path}; make one: greyhound pack IMAGES --out {path}") from None
    except OSError as error:
        raise _no_pack(path, error.strerror) from None


def _no_pack(path: Path, reason: str | None) -> PackError:
    return PackError(f"{path} cannot be opened ({reason}); expected a pack file")


def _no_arrow_pack(path: Path) -> PackError:
    return PackError(f"{path} is an Arrow file but not a pack; make one: greyhound pack IMAGES --out PACK")


def _read_table(path: Path, buffer: pa.Buffer) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.BufferReader(buffer)).read_all()
        if table.schema.equals(SCHEMA):
            table.drop_columns("image").validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise PackError(f"{path} is no readable pack ({reason}); pack the images again") from None
    if not table.schema.equals(SCHEMA):
        raise _no_arrow_pack(path)
    if not len(table):
        raise PackError(f"{path} holds no images; pack the images again")
    if any(column.null_count for column in table.columns):
        raise PackError(f"{path} is corrupt: rows without a value; pack the images again")
    if any(chunk.dictionary.to_pylist() != list(SPLITS) for chunk in table.column("split").chunks):
        raise PackError(f"{path} is corrupt: its splits have other names; pack the images again")
    return table


def _locate(
    path: Path, buffer: pa.Buffer, column: pa.ChunkedArray
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where in the file each image starts and stops, whatever record batch it lies in. Raises PackError."""
    bounds = []
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        count = min(chunk.offset + len(chunk) + 1, offsets.size // 8)
        relative = np.frombuffer(offsets, dtype=np.int64, count=count)[chunk.offset :]
        inside = len(relative) > len(chunk) and relative[0] >= 0 and relative[-1] <= data.size
        if not inside or (np.diff(relative) < 0).any():
            raise PackError(f"{path} is corrupt: its images lie outside of it; pack the images again")
        bounds.append(relative + (data.address - buffer.address))
    return np.concatenate([b[:-1] for b in bounds]), np.concatenate([b[1:] for b in bounds])


def index_checksum(columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> int:
    """crc32 over what the index says of every row: all columns but the images and their own checksums.

    columns: by name; more are welcome. How the rows are divided into record batches plays no part.
    """
    checksum = 0
    for name in SCHEMA.names:
        if name not in ("image", "crc32"):
            column = columns[name]
            chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
            for piece in itertools.chain(*zip(*map(_parts, chunks), strict=True)):
                checksum = zlib.crc32(piece, checksum)
    return checksum


def _parts(chunk: pa.Array) -> Iterator[memoryview | bytes]:
    """An array's values as bytes: numbers as they are, texts as their lengths and then their letters."""
    if pa.types.is_string(chunk.type):
        count = chunk.offset + len(chunk) + 1  # the buffer may be longer, and of any length
        offsets = np.frombuffer(chunk.buffers()[1], dtype=np.int32, count=count)[chunk.offset :]
        yield np.diff(offsets).tobytes()
        yield memoryview(chunk.buffers()[2] or b"")[offsets[0] : offsets[-1]]
    else:
        numbers = chunk.indices if pa.types.is_dictionary(chunk.type) else chunk
        yield numbers.to_numpy().tobytes()
