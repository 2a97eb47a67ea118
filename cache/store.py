"""Pack: open, verify, and read the original bytes of image i without a copy.

Before it: a pack file, or the shards of one, that `pack` wrote. After it: `pipelines` decodes and augments. The whole layout of the file is
here: the schema, the metadata, the format's version.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
import weakref
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from greyhound.cache.errors import UserError
from greyhound.cache.machine import available_cores, available_memory
from greyhound.cache.shards import ShardsError, find

FORMAT: Final = 2
"""Version of the layout. A reader refuses a newer one. 2: a shard of a pack; a pack in one file is of version 1."""
SPLITS: Final = ("train", "val", "test")
SCHEMA: Final = pa.schema(
    [
        pa.field("image", pa.large_binary(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("split", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("orientation", pa.uint8(), nullable=False),
        pa.field("mean_luma", pa.float32(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
    ]
)
_METADATA: Final = b"greyhound"
_CHECKSUM: Final = b"greyhound_crc32"
_PAGE: Final = 4096
NAMED: Final = 100
"""Damaged images that a message names."""
_NEVER: Final = -1
"""The version of its file at which an image was checked, as long as it was not."""
_COPIED: Final = 0
"""The version of what lies in memory of our own."""

Residency = Literal["mmap", "ram"]


class PackError(UserError):
    """The pack, or what was to become one, is not what was expected; the message is one line for the user."""


@dataclass(frozen=True)
class Excluded:
    """A file that was left out, and why. thumbnail: a small JPEG, or None where nothing could be shown."""

    path: str
    reason: str
    detail: str = ""
    thumbnail: str | None = None
    """Base64."""


@dataclass(frozen=True)
class Header:
    """What a pack says of itself, in its schema's metadata.

    classes: names in order, index = label. excluded: what was left out. transcoded: path and reason of what was
    stored as PNG. relabelled: path, its class folder, and the class that a person gave it. unmatched: how many
    decisions of a person were for no file of the folder; lost: their paths, as far as the pack knows them. shard: which of the `shards` files this is; all but index_crc32 is said
    of the whole pack. digest: sha256 over every row's path, label, split and content: two packs with one digest hold
    the same data.
    """

    classes: tuple[str, ...]
    digest: str
    seed: int
    excluded: tuple[Excluded, ...] = ()
    transcoded: tuple[tuple[str, str], ...] = ()
    relabelled: tuple[tuple[str, str, str], ...] = ()
    unmatched: int = 0
    lost: tuple[str, ...] = ()
    format: int = 1
    index_crc32: int | None = None
    """`index_checksum` of the file's rows; None in a pack from before there was one."""
    shard: int = 0
    shards: int = 1

    def of_shard(self, shard: int, shards: int, index_crc32: int) -> Header:
        """The header of one file of the pack."""
        version = FORMAT if shards > 1 else self.format
        return replace(self, format=version, index_crc32=index_crc32, shard=shard, shards=shards)

    def schema(self) -> pa.Schema:
        """The file's schema with this header in its metadata, and the header's own checksum."""
        text = json.dumps(self, default=lambda value: vars(value)).encode()
        return SCHEMA.with_metadata({_METADATA: text, _CHECKSUM: str(zlib.crc32(text)).encode()})

    @staticmethod
    def read(schema: pa.Schema, path: Path) -> Header:
        """The header in `schema`. Raises PackError."""
        text = (schema.metadata or {}).get(_METADATA)
        if text is None:
            raise PackError(
                f"{path} is an Arrow file but not a pack; make one: greyhound pack IMAGES --out PACK"
            )
        try:
            if int(schema.metadata.get(_CHECKSUM, zlib.crc32(text))) != zlib.crc32(text):
                raise ValueError("its checksum is another")
            return Header._parse(json.loads(text), path)
        except PackError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PackError(
                f"{path} has a damaged header ({type(error).__name__}); pack the images again"
            ) from None

    @staticmethod
    def _parse(content: dict[str, Any], path: Path) -> Header:
        if content["format"] > FORMAT:
            raise PackError(
                f"{path} has pack format {content['format']}, newer than {FORMAT}, the newest known here; update Greyhound"
            )
        return Header(
            classes=tuple(content["classes"]),
            digest=content["digest"],
            seed=content["seed"],
            excluded=tuple(Excluded(**row) for row in content["excluded"]),
            transcoded=tuple((path, reason) for path, reason in content["transcoded"]),
            relabelled=tuple((path, old, new) for path, old, new in content.get("relabelled", ())),
            unmatched=content.get("unmatched", 0),  # packs from before there were decisions have neither
            lost=tuple(content.get("lost", ())),
            format=content["format"],
            index_crc32=content.get("index_crc32"),
            shard=content.get("shard", 0),
            shards=content.get("shards", 1),
        )


class Pack:
    """An open pack. Owns the mapping of its files; every array is read-only and aligned with their rows.

    labels: int32 `[n]`. sizes: int32 `[n, 2]`, width and height after EXIF rotation; stored_sizes: before it.
    orientations: uint8 `[n]`, EXIF 1..8. mean_lumas: float32 `[n]`, 0..255. crc32s: uint32 `[n]`.
    """

    def __init__(self, path: Path | str, residency: Residency = "mmap") -> None:
        """Open in time that does not depend on the images' bytes; `make_resident` reads them. Raises PackError."""
        self.path, self.residency = Path(path), residency
        try:
            shards = [Shard(file) for file in find(self.path)]
        except ShardsError as error:
            raise PackError(str(error)) from None
        _check_together(shards)
        self.header = shards[0].header
        self._files = [shard.path for shard in shards]
        self._bytes = [shard.bytes for shard in shards]
        self._mappings = [shard.mapping for shard in shards]
        self._resident = False
        self._starts = np.concatenate([shard.starts for shard in shards])
        self._stops = np.concatenate([shard.stops for shard in shards])
        self._firsts = [0, *np.cumsum([len(shard.starts) for shard in shards])[:-1].tolist()]
        table = pa.concat_tables([shard.table for shard in shards])
        self._checked = np.full(len(self._starts), _NEVER)
        self._paths = _own_texts(table.column("path"))
        self._splits = np.concatenate([chunk.indices.to_numpy() for chunk in table.column("split").chunks])
        self.labels: NDArray[np.int32] = _own(table.column("label"))
        self.sizes: NDArray[np.int32] = np.stack(
            [table.column("width").to_numpy(), table.column("height").to_numpy()], axis=1
        )
        self.orientations: NDArray[np.uint8] = _own(table.column("orientation"))
        self.stored_sizes = np.where((self.orientations >= 5)[:, None], self.sizes[:, ::-1], self.sizes)
        self.mean_lumas: NDArray[np.float32] = _own(table.column("mean_luma"))
        self.crc32s: NDArray[np.uint32] = _own(table.column("crc32"))
        _check_labels(self.path, self.labels, self.classes)
        for name, values, least, most in (
            ("widths and heights", self.sizes, 1, np.iinfo(np.int32).max),
            ("orientations", self.orientations, 1, 8),
            ("mean lumas", self.mean_lumas, 0, 256),
        ):
            _check_range(self.path, name, values, least, most)

    def make_resident(self) -> None:
        """Bring every image into memory, once, so that no epoch reads the disk.

        residency "mmap" touches every page of the shared page cache, unless they are more than fit: then each is read
        when it is needed. "ram" makes a private copy, which memory pressure can swap but not drop.
        """
        fits = self.nbytes <= available_memory()
        if self._resident or not (fits or self.residency == "ram"):
            return
        for mapping in self._mappings:
            mapping.version()  # refuses what was cut short
        if self.residency == "ram":
            self._bytes = [data.copy() for data in self._bytes]
            self._mappings = []
        for data in self._bytes:
            data.flags.writeable = False
            data[::_PAGE].max(initial=0)
        self._resident = True

    def __len__(self) -> int:
        """Images."""
        return len(self._starts)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, index = label."""
        return self.header.classes

    @property
    def nbytes(self) -> int:
        """Bytes of all the images."""
        return int((self._stops - self._starts).sum())

    def encoded(self, index: int) -> NDArray[np.uint8]:
        """The original bytes of image `index`, a read-only view into the file: nothing is copied.

        Their checksum is compared the first time that they are asked for, and again where somebody wrote to the file
        since. Raises PackError.
        """
        if not (self._is_checked(index) or self.is_sound(index)):
            raise self._damage([index])
        return self._raw(index)

    @contextmanager
    def naming_damaged(self, ids: NDArray[np.int64]) -> Iterator[None]:
        """Where the block meets a damaged image, look at all the rows `ids`, and name every one that is. Raises PackError."""
        try:
            yield
        except PackError as error:
            found = self.damaged(ids)
            raise self._damage(found) if found else error from None

    def _damage(self, rows: Sequence[int]) -> PackError:
        files = dict.fromkeys(str(self._files[self._shard(row)]) for row in rows)
        named = ", ".join(map(self.describe, rows[:NAMED]))
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        verb = "has" if len(rows) == 1 else "have"
        return PackError(
            f"{', '.join(files)} is damaged: {named}{more} {verb} not the bytes that were packed; copy the pack again, "
            "or pack the images again; --on-bad skip goes on without such images"
        )

    def is_sound(self, index: int) -> bool:
        """Whether image `index` has the checksum that it was packed with."""
        version = self._version(index)  # before the bytes: what is written meanwhile is of a later one
        sound = zlib.crc32(self._raw(index).data) == int(self.crc32s[index])
        self._checked[index] = version if sound else _NEVER
        return sound

    def _is_checked(self, index: int) -> bool:
        """Whether image `index` was found sound, and nobody wrote to its file since. Raises PackError."""
        return bool(self._checked[index] == self._version(index))

    def _version(self, index: int) -> int:
        """Of the file that image `index` is in. Raises PackError where it was cut short."""
        return self._mappings[self._shard(index)].version() if self._mappings else _COPIED

    def _raw(self, index: int) -> NDArray[np.uint8]:
        return self._bytes[self._shard(index)][self._starts[index] : self._stops[index]]

    def _shard(self, index: int) -> int:
        """Which of the files image `index` is in."""
        return bisect_right(self._firsts, index) - 1

    def image_path(self, index: int) -> str:
        """Where image `index` came from, relative to the packed folder."""
        return str(self._paths[int(index)].as_py())

    def describe(self, index: int) -> str:
        """Name image `index` for a message."""
        return f"row {index} ({self.image_path(index)!r})"

    def ids(self, split: str) -> NDArray[np.int64]:
        """Rows of one split, ascending: int64 `[n]`. Raises PackError for a split that no pack has."""
        if split not in SPLITS:
            raise PackError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
        return np.flatnonzero(self._splits == SPLITS.index(split))

    def require_classes(self, classes: Sequence[str], whose: str) -> None:
        """Raise PackError unless the pack has just these classes. whose: whom they are of, for the message."""
        if list(self.classes) != list(classes):
            missing = sorted(set(classes) - set(self.classes))
            why = f"{missing[0]!r} is missing, for one" if missing else f"it has {len(self.classes)} classes"
            raise PackError(
                f"{self.path} has other classes than {whose} was trained on ({why}); expected those "
                f"{len(classes)}: {', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"
            )

    def damaged(self, ids: NDArray[np.int64] | None = None) -> list[int]:
        """Those of the rows `ids` that have not the checksum that they were packed with; what was found sound before is not
        read again. Without `ids` every row is.
        """
        rows = np.arange(len(self)) if ids is None else ids

        def validate_image(some: NDArray[np.int64]) -> list[int]:
            known = ids is not None
            return [
                index
                for index in some.tolist()
                if not (known and self._is_checked(index)) and not self.is_sound(index)
            ]

        with ThreadPoolExecutor(available_cores()) as pool:
            parts = pool.map(validate_image, np.array_split(rows, 8 * available_cores()))
            return [index for part in parts for index in part]

    def summary(self, thumbnails: bool = True) -> dict[str, Any]:
        """What is in the pack, as JSON-able values: the run folder's `pack.json`; `info --json` without thumbnails."""
        reasons: dict[str, int] = {}
        for row in self.header.excluded:
            reasons[row.reason] = reasons.get(row.reason, 0) + 1
        return {
            "path": str(self.path.resolve()),
            "digest": self.header.digest,
            "seed": self.header.seed,
            "images": len(self),
            "bytes": self.nbytes,
            "classes": list(self.classes),
            "splits": {split: len(self.ids(split)) for split in SPLITS},
            "excluded": {
                "total": len(self.header.excluded),
                "reasons": reasons,
                "images": [
                    vars(row) if thumbnails else vars(replace(row, thumbnail=None))
                    for row in self.header.excluded
                ],
            },
            "transcoded": [{"path": path, "reason": reason} for path, reason in self.header.transcoded],
            "relabelled": [
                {"path": path, "from": old, "to": new} for path, old, new in self.header.relabelled
            ],
            "unmatched": self.header.unmatched,
            "lost": list(self.header.lost),
        }


class Shard:
    """One file of a pack, or all of it. starts, stops: int64 `[n]`, where in `bytes` each image lies."""

    def __init__(self, path: Path) -> None:
        """Map the file, and check all that it says of its rows. Raises PackError."""
        self.path = path
        self.mapping = MappedFile(path)
        buffer = pa.py_buffer(self.mapping.memory)
        self.table = _read_table(path, buffer)
        self.header = Header.read(self.table.schema, path)
        self.bytes: NDArray[np.uint8] = np.frombuffer(buffer, dtype=np.uint8)
        self.starts, self.stops = _locate(path, buffer, self.table.column("image"))
        columns = dict(zip(self.table.column_names, self.table.columns, strict=True))
        if self.header.index_crc32 not in (None, index_checksum(columns)):
            raise PackError(
                f"{path} is damaged: labels, splits, sizes or paths are not those that were packed; copy it "
                "again, or pack the images again"
            )


def _check_together(shards: Sequence[Shard]) -> None:
    """Refuse files that are not the shards of one packing, each in its place. Raises PackError."""
    first = shards[0].header
    for index, shard in enumerate(shards):
        header = shard.header
        if (header.shard, header.shards) != (index, len(shards)):
            raise PackError(
                f"{shard.path} is shard {header.shard} of {header.shards}, and its name says {index} of {len(shards)}; "
                "expected every shard beside the others, under the name that it was packed with"
            )
        if (header.digest, header.classes) != (first.digest, first.classes):
            raise PackError(
                f"{shard.path} is of another pack than {shards[0].path.name} beside it; copy all shards again, or pack "
                "the images again"
            )


class MappedFile:
    """Owns the mapping of a file, and asks the system what became of the file since."""

    def __init__(self, path: Path) -> None:
        """Map all of it. Raises PackError."""
        self.path = path
        self._descriptor = _open(path)
        weakref.finalize(self, os.close, self._descriptor)
        try:
            self.memory = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise PackError(f"{path} is no readable pack (it is empty); pack the images again") from None
        except OSError as error:
            raise _no_pack(path, error.strerror) from None

    def version(self) -> int:
        """Another number whenever somebody wrote to the file, or gave it another name, since the last time.

        Raises PackError where it was cut short: to read what is mapped and gone ends the process.
        """
        found = os.fstat(self._descriptor)
        if found.st_size < len(self.memory):
            raise PackError(
                f"{self.path} was cut short while it was in use; copy the pack again, or pack the images again; "
                "--residency ram reads it once and for all"
            )
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


def _read_table(path: Path, buffer: pa.Buffer) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.BufferReader(buffer)).read_all()
        if table.schema.equals(SCHEMA):
            table.drop_columns("image").validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise PackError(f"{path} is no readable pack ({reason}); pack the images again") from None
    if not table.schema.equals(SCHEMA):
        raise PackError(f"{path} is an Arrow file but not a pack; make one: greyhound pack IMAGES --out PACK")
    if not len(table):
        raise PackError(f"{path} holds no images; pack the images again")
    if any(column.null_count for column in table.columns):
        raise PackError(f"{path} is damaged: rows without a value; pack the images again")
    if any(chunk.dictionary.to_pylist() != list(SPLITS) for chunk in table.column("split").chunks):
        raise PackError(f"{path} is damaged: its splits have other names; pack the images again")
    return table


def _locate(
    path: Path, buffer: pa.Buffer, column: pa.ChunkedArray
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where in the file each image starts and stops.

    Absolute offsets make reading an image a single slice of one array, whatever record batch it lies in. Raises
    PackError where one would reach out of the file.
    """
    bounds = []
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        count = chunk.offset + len(chunk) + 1
        relative = np.frombuffer(offsets, dtype=np.int64, count=min(count, offsets.size // 8))[chunk.offset :]
        inside = len(relative) > len(chunk) and relative[0] >= 0 and relative[-1] <= data.size
        if not inside or (np.diff(relative) < 0).any():
            raise PackError(f"{path} is damaged: its images lie outside of it; pack the images again")
        bounds.append(relative + (data.address - buffer.address))
    return np.concatenate([b[:-1] for b in bounds]), np.concatenate([b[1:] for b in bounds])


def _own(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column's numbers in memory of their own, which stays whatever becomes of the file; read-only."""
    values: NDArray[Any] = column.to_numpy().copy()
    values.flags.writeable = False
    return values


def _own_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of texts in memory of its own, likewise."""
    memory = pa.default_cpu_memory_manager()
    return pa.chunked_array([chunk.copy_to(memory) for chunk in column.chunks])


def _check_labels(path: Path, labels: NDArray[np.int32], classes: tuple[str, ...]) -> None:
    """A label is a class, or -1 where the images have none. Raises PackError."""
    low, high = labels.min(), labels.max()
    if low < -1 or high >= len(classes):
        raise PackError(
            f"{path} is damaged: labels go from {low} to {high}, and there are {len(classes)} classes; pack the images "
            "again"
        )


def _check_range(path: Path, name: str, values: NDArray[Any], least: int, most: int) -> None:
    """Whoever computes a checksum may write any number; what no photograph has would fail later. Raises PackError."""
    low, high = values.min(), values.max()
    if not (least <= low and high <= most):
        raise PackError(
            f"{path} is damaged: {name} go from {low} to {high}; expected {least} to {most}; pack the images again"
        )


def index_checksum(columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> int:
    """crc32 over what the index says of every row: all columns but the images and their own checksums.

    columns: by name; more are welcome. How the rows are divided into record batches plays no part.
    """
    checksum = 0
    for name in SCHEMA.names:
        if name in ("image", "crc32"):
            continue
        column = columns[name]
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        for part in zip(*map(_parts, chunks), strict=True):
            for piece in part:
                checksum = zlib.crc32(piece, checksum)
    return checksum


def _parts(chunk: pa.Array) -> Iterator[memoryview | bytes]:
    """An array's values as bytes: numbers as they are, texts as their lengths and then their letters."""
    if pa.types.is_string(chunk.type):
        count = chunk.offset + len(chunk) + 1  # the buffer may be longer, and of any length
        offsets = np.frombuffer(chunk.buffers()[1], dtype=np.int32, count=count)[chunk.offset :]
        yield np.diff(offsets).tobytes()
        letters = chunk.buffers()[2]
        yield memoryview(letters or b"")[offsets[0] : offsets[-1]]
    elif pa.types.is_dictionary(chunk.type):
        yield chunk.indices.to_numpy().tobytes()
    else:
        yield chunk.to_numpy().tobytes()
