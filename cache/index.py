"""The index of a pack file: what its rows say of their images once more, each column in one piece.

Before it: an Arrow IPC file that `pack` wrote. After it: `shards` reads a column whenever it is asked for, so
that a pack of millions of rows opens without a look at them.

The index lies between the last record batch and the footer. Arrow's readers find the batches by the footer,
and see nothing of the index.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter

from greyhound.cache.errors import UserError, one_line

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
WEIGHT: Final = "weight"
FAMILY: Final = "family"
OPTIONAL: Final = {WEIGHT: 1, FAMILY: -1}
"""Further columns, in packs alone where a value is another than this one."""
_EVERY: Final = SCHEMA.append(pa.field(WEIGHT, pa.float32(), nullable=False)).append(
    pa.field(FAMILY, pa.int32(), nullable=False)
)
INDEX: Final[dict[str, np.dtype[Any]]] = {
    "label": np.dtype("<i4"),
    "split": np.dtype("i1"),  # its number in SPLITS
    "size": np.dtype(("<i4", 2)),  # width and height
    "orientation": np.dtype("u1"),
    "mean_luma": np.dtype("<f4"),
    "crc32": np.dtype("<u4"),
    "place": np.dtype(("<i8", 2)),  # where in the file the image starts and stops
    WEIGHT: np.dtype("<f4"),
    FAMILY: np.dtype("<i4"),
}
"""Columns of the index; the paths are beside them."""
PATHS: Final = 4096
"""Paths that are read and checked together."""
_END: Final = struct.Struct("<IQ8s")
"""Behind the index: crc32 and length of its table of contents, and `_MAGIC`."""
_MAGIC: Final = b"greyidx1"
_ARROWS_END: Final = 10
"""Bytes behind the footer: its length, in 4, and ARROW1."""


class PackError(UserError):
    """The pack, or what was to become one, is not what was expected; the message is one line for the user."""


@dataclass(frozen=True)
class Index:
    """The index's table of contents.

    image_bytes: of all images of the file. columns: name in `INDEX` -> where it begins, and its crc32. paths:
    of every `PATHS` rows as a list in JSON: where it begins, its length in bytes, and its crc32.
    """

    rows: int
    image_bytes: int
    columns: dict[str, tuple[int, int]]
    paths: tuple[tuple[int, int, int], ...]


_contents: Final = cache(lambda: TypeAdapter(Index))  # takes longer to make than an index to read


def no_arrow_pack(path: Path) -> PackError:
    """An Arrow file of something else."""
    return PackError(f"{path} is an Arrow file but not a pack; make one: greyhound pack IMAGES --out PACK")


def other_index(path: Path) -> PackError:
    """An index, or a part of it, that has another checksum."""
    what = "labels, splits, sizes or paths are not those that were packed"
    return PackError(f"{path} is corrupt: {what}; copy it again, or pack the images again")


def _unreadable(path: Path, error: Exception) -> PackError:
    reason = one_line(error)
    return PackError(f"{path} is no readable pack ({reason}); pack the images again")


def schema(names: Collection[str]) -> pa.Schema:
    """Of a pack that has those of the `OPTIONAL` columns that are named."""
    return pa.schema([field for field in _EVERY if field.name in names or field.name not in OPTIONAL])


def open_arrow(path: Path, buffer: pa.Buffer) -> pa.RecordBatchFileReader:
    """Read the footer, which has the columns of a pack. Raises PackError."""
    try:
        reader = pa.ipc.open_file(pa.BufferReader(buffer))
        expected = schema(reader.schema.names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if not reader.schema.equals(expected):
        raise no_arrow_pack(path)
    return reader


def _read_table(path: Path, buffer: pa.Buffer) -> pa.Table:
    reader = open_arrow(path, buffer)
    try:
        table = reader.read_all()
        table.drop_columns("image").validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if any(column.null_count for column in table.columns):
        raise PackError(f"{path} is corrupt: rows without a value; pack the images again")
    if any(chunk.dictionary.to_pylist() != list(SPLITS) for chunk in table.column("split").chunks):
        raise PackError(f"{path} is corrupt: its splits have other names; pack the images again")
    return table


def _locate(path: Path, buffer: pa.Buffer, column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Where in the file each image starts and stops, int64 `[n, 2]`. Raises PackError."""
    bounds = [np.empty((0, 2), np.int64)]
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        count = min(chunk.offset + len(chunk) + 1, offsets.size // 8)
        relative = np.frombuffer(offsets, dtype=np.int64, count=count)[chunk.offset :]
        inside = len(relative) > len(chunk) and relative[0] >= 0 and relative[-1] <= data.size
        if not inside or (np.diff(relative) < 0).any():
            raise PackError(f"{path} is corrupt: its images lie outside of it; pack the images again")
        bounds.append(np.stack([relative[:-1], relative[1:]], axis=1) + (data.address - buffer.address))
    return np.concatenate(bounds)


def _numbers(chunks: Sequence[pa.Array]) -> NDArray[Any]:
    """The numbers of a column; pyarrow's own `to_numpy` imports pandas (pyarrow 26.0.1)."""
    return np.concatenate([*map(np.from_dlpack, chunks)] or [np.empty(0, np.int8)])


def index_of(path: Path, buffer: pa.Buffer) -> tuple[dict[str, NDArray[Any]], pa.ChunkedArray]:
    """What the Arrow rows of a file say: the columns of `INDEX`, and the paths. Raises PackError."""
    table = _read_table(path, buffer)
    known = {name: table.column(name).chunks for name in table.column_names if name not in ("image", "path")}
    known["split"] = [chunk.indices for chunk in known["split"]]
    columns = {name: _numbers(chunks) for name, chunks in known.items()}
    columns["size"] = np.stack([columns.pop("width"), columns.pop("height")], axis=1)
    columns["place"] = _locate(path, buffer, table.column("image"))
    return columns, table.column("path")


def column(name: str, values: Sequence[Any]) -> pa.Array:
    """A column but the splits: numbers, bytes, or text as UTF-8."""
    return _array(_EVERY.field(name).type, values)


def split_column(splits: Sequence[str]) -> pa.Array:
    """The column of splits."""
    numbers = _array(pa.int8(), [SPLITS.index(split) for split in splits])
    return pa.DictionaryArray.from_arrays(numbers, _array(pa.string(), [name.encode() for name in SPLITS]))


def _array(kind: pa.DataType, values: Sequence[Any]) -> pa.Array:
    """From buffers: `array` imports pandas (pyarrow 26.0.1), and so does `to_pandas_dtype` (25.0.1)."""
    if pa.types.is_primitive(kind):
        buffers: list[Any] = [np.array(values, "float32" if pa.types.is_float32(kind) else str(kind))]
    else:
        offsets = np.int64 if pa.types.is_large_binary(kind) else np.int32
        buffers = [np.cumsum([0, *map(len, values)], dtype=offsets), b"".join(values)]
    return pa.Array.from_buffers(kind, len(values), [None, *map(pa.py_buffer, buffers)])


def add_index(path: Path) -> None:
    """Write the index of an Arrow file that has the rows of a pack into it. Raises PackError, OSError."""
    with path.open("r+b") as file:
        buffer = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        columns, paths = index_of(path, buffer)
        footer = buffer.slice(_footer(np.frombuffer(buffer, np.uint8))).to_pybytes()
        file.seek(-len(footer), os.SEEK_END)
        places, blocks = {}, []
        for name in (each for each in INDEX if each in columns):
            data = columns[name].astype(INDEX[name].base, copy=False).tobytes()
            places[name] = (file.tell(), zlib.crc32(data))
            file.write(data)
        for low in range(0, len(paths), PATHS):
            data = json.dumps(paths.slice(low, PATHS).to_pylist()).encode()
            blocks.append((file.tell(), len(data), zlib.crc32(data)))
            file.write(data)
        nbytes = int(np.diff(columns["place"]).sum())
        text = json.dumps(asdict(Index(len(paths), nbytes, places, tuple(blocks)))).encode()
        file.write(text + _END.pack(zlib.crc32(text), len(text), _MAGIC) + footer)


def _footer(data: NDArray[np.uint8]) -> int:
    """Where in an Arrow file its footer begins."""
    size = int.from_bytes(data[-_ARROWS_END:][:4].tobytes(), "little")
    return len(data) - _ARROWS_END - size


def read_index(path: Path, data: NDArray[np.uint8]) -> Index:
    """The table of contents of the index, which lies in the file where it says. Raises PackError."""
    try:
        end = _footer(data) - _END.size
        crc32, size, magic = _END.unpack(data[end : end + _END.size].tobytes())
        text = data[end - size : end].tobytes()
        if (zlib.crc32(text), magic) != (crc32, _MAGIC):
            raise ValueError("its checksum is another")
        index = _contents().validate_json(text, strict=True)
        names = [name for name in INDEX if name in index.columns or name not in OPTIONAL]
        starts = [(index.columns[name][0], index.rows * INDEX[name].itemsize) for name in names]
        starts += [(start, length) for start, length, _ in index.paths]
        inside = all(min(start, length) >= 0 and start + length <= end for start, length in starts)
        if not inside or len(index.paths) != -(-index.rows // PATHS):
            raise ValueError("it lies elsewhere")
    except (ValueError, KeyError, struct.error):
        raise other_index(path) from None
    if not index.rows:
        raise PackError(f"{path} holds no images; pack the images again")
    return index


def read_paths(path: Path, text: bytes | bytearray, count: int) -> list[str]:
    """So many images' paths, of a block of the index. Raises PackError."""
    try:
        paths = TypeAdapter(list[str]).validate_json(text, strict=True)
    except ValueError:
        paths = []
    if len(paths) != count:
        raise other_index(path)
    return paths
