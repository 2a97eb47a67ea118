"""Images that lie in Parquet files, as Hugging Face's `datasets` writes them, and rows of a Parquet table.

Before it: the files. After it: `collection.Collection`; the images lie one after the other in a file of ours.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from greyhound.cache.collection import Collection, Collector
from greyhound.cache.data_files import DataFiles
from greyhound.cache.errors import one_line
from greyhound.cache.files import WriteError
from greyhound.cache.folder import find_file
from greyhound.cache.manifest import LABELS, is_url
from greyhound.cache.place import ByteRange, Place
from greyhound.cache.store import PackError

IMAGES: Final = ("image", "img", "picture", "jpg", "png")
"""What a column of images is called, unless the file's features name it, or there is just one."""
ROWS: Final = 64
"""Read at a time."""
BUFFER: Final = 1 << 20
"""Bytes of a column that are read at a time; else it is a whole row group, perhaps all of the file."""


def has_images(file: Path) -> bool:
    """Whether a column of a file may hold images. Raises PackError."""
    return bool(_image_columns(_open(file)))


def read_rows(file: Path, wanted: Container[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of all columns, and rows of those that are wanted, both with names in lower case.

    Numbers of named classes are read as their names. Raises PackError.
    """
    opened = _open(file)
    names = {name: name.lower() for name in opened.schema_arrow.names}
    some = [name for name in names if names[name] in wanted]
    if twice := [name for name, count in Counter(map(str.lower, some)).items() if count > 1]:
        raise PackError(f"{file} has two columns {twice[0]!r}, in lower case; expected each once")
    rows = _rows(opened, file, some)
    return [*names.values()], [{names[name]: value for name, value in row.items()} for row in rows]


def read(data: DataFiles, spool: Path, label: str = "") -> Collection:
    """Every image of the files, written into the file `spool`. label: the column of classes.

    Raises PackError, WriteError.
    """
    splits, notes = data.splits(), list[str]()
    images, naming = Collector(data.whole), dict[bool, Path]()
    try:
        with spool.open("wb") as file:
            for source, name, split in zip(data.files, data.names, splits, strict=True):
                opened = _open(source)
                columns = image, kind = _choose_columns(opened, source, label)
                naming.setdefault(_names_classes(opened, kind), source)
                if len(naming) > 1:
                    what = f"{naming[False]} numbers its classes, and {naming[True]} names them"
                    raise PackError(f"{what}; expected one of the two in all files of {data.whole}")
                more = _splits_and_groups(opened, columns)
                if not label and kind.lower() not in LABELS:
                    said = f"the classes are those of the column {kind}; --label names another"
                    notes += [said] if said not in notes else []
                used = *columns, *more.values()
                others = [each for each in opened.schema_arrow.names if each not in used]
                if others and (said := f"columns that are not used: {', '.join(others)[:200]}") not in notes:
                    notes.append(said)
                for number, row in enumerate(_rows(opened, source, used)):
                    said, group = (_text(row.get(more.get(each, ""))) for each in ("split", "group"))
                    image_of = f"{name}/{number:06d}", row[image], _text(row[kind])
                    _add(*image_of, said or split, group, file, images, source.parent)
    except OSError as error:
        what = f"the images of {data.whole} cannot be laid down in {spool.parent} ({error.strerror or error})"
        raise WriteError(f"{what}; free space there, or name another place: --out") from None
    return images.collect(notes, "as the files say")


def _add(
    name: str, image: Any, label: str, split: str, group: str, file: IO[bytes], images: Collector, home: Path
) -> None:
    """One image, its bytes at the end of the file; or where its path leads. Raises PackError, OSError."""
    data, path = _image(image)
    there = find_file(home, path) if path and data is None and not is_url(path) else home
    path = f"{name}-{path}" if path else name
    place: Place = ByteRange(Path(file.name), file.tell(), len(data or b""), path)
    if data is None and there.is_file():
        place, data = there, b""
    if data is None:
        why = "the table holds no bytes of it, and its path is no file"
        images.leave_out(place, path, label, "missing file", why)
    elif not label:
        images.leave_out(place, path, "", "no label")
    else:
        file.write(data)
        images.add(place, path, label, split, group)


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()


def _image(value: Any) -> tuple[bytes | None, str]:
    """The bytes of an image, None for none, and its path, "" for none."""
    return (value.get("bytes"), value.get("path") or "") if isinstance(value, dict) else (value, "")


def _open(file: Path) -> pq.ParquetFile:
    """Raises PackError."""
    try:
        opened = pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
        names = opened.schema_arrow.names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, error) from None
    if twice := [name for name in names if names.count(name) > 1]:
        raise PackError(f"{file} has two columns {twice[0]!r}; expected each once")
    return opened


def _unreadable(file: Path, error: Exception) -> PackError:
    why = one_line(error)
    return PackError(f"{file} cannot be read ({why}); expected a whole Parquet file: copy it again")


def _rows(opened: pq.ParquetFile, file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Some columns of every row; what is numbered in the file's features by its name. Raises PackError."""
    classes = {name: each["names"] for name, each in _features(opened).items() if each.get("names")}
    try:
        for batch in opened.iter_batches(ROWS, columns=[*columns]):
            for row in batch.to_pylist():
                yield {name: _name(row[name], classes.get(name, ()), file) for name in columns}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, error) from None


def _name(value: Any, names: Sequence[str], file: Path) -> Any:
    """The name of a class for its number, None for -1; anything else as it is. Raises PackError."""
    if not names or type(value) is not int:
        return value
    if value >= len(names):
        raise PackError(f"{file} has the label {value}; expected 0 to {len(names) - 1}, as its features say")
    return names[value] if value >= 0 else None


def _features(opened: pq.ParquetFile) -> dict[str, dict[str, Any]]:
    """What `datasets` wrote of each column, none where it did not."""
    text = (opened.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(text)["info"]["features"]
        known = {*opened.schema_arrow.names}
        return {name: each for name, each in features.items() if isinstance(each, dict) and name in known}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _image_columns(opened: pq.ParquetFile) -> list[str]:
    """Those that hold bytes; of these, those that the features call images, if they call any so."""
    holding = [field.name for field in opened.schema_arrow if _holds_bytes(field.type)]
    features = _features(opened)
    return [name for name in holding if features.get(name, {}).get("_type") == "Image"] or holding


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _choose_columns(opened: pq.ParquetFile, file: Path, label: str) -> tuple[str, str]:
    """The columns of images and of classes. Raises PackError."""
    schema, there = opened.schema_arrow, ", ".join(opened.schema_arrow.names)[:100]
    images = _image_columns(opened)
    if len(images) > 1:
        images = [name for name in images if name.lower() in IMAGES] or images
    if len(images) != 1:
        what = f"several columns of images ({', '.join(images)})" if images else f"the columns {there}"
        raise PackError(f"{file} has {what}; expected one column of images: {', '.join(IMAGES)}")
    numbered = [name for name, each in _features(opened).items() if each.get("names")]
    wanted = (label.lower(),) if label else LABELS
    named = [name for each in wanted for name in schema.names if name.lower() == each]
    labels = named[:1] or ([] if label else numbered)
    if len(labels) != 1:
        what = f"several columns of classes ({', '.join(labels)})" if labels else f"the columns {there}"
        todo = f"expected {label!r}, as --label says" if label else "name that of the classes: --label COLUMN"
        raise PackError(f"{file} has {what}; {todo}")
    kind = _type(schema, labels[0])
    if not (_is_text(kind) or pa.types.is_integer(kind)):
        raise PackError(f"{file} has {kind} in the column {labels[0]}; expected text or whole numbers")
    return images[0], labels[0]


def _splits_and_groups(opened: pq.ParquetFile, columns: Sequence[str]) -> dict[str, str]:
    """The columns split and group by these names, where they are there and hold text or whole numbers."""
    schema = opened.schema_arrow
    kinds = {name: _type(schema, name) for name in schema.names if name not in columns}
    plain = [name for name, kind in kinds.items() if _is_text(kind) or pa.types.is_integer(kind)]
    return {name.lower(): name for name in plain if name.lower() in ("split", "group")}


def _names_classes(opened: pq.ParquetFile, column: str) -> bool:
    """Whether a column has classes by name: as text, or as numbers that the features name."""
    named = _features(opened).get(column, {}).get("names")
    return bool(named) or _is_text(_type(opened.schema_arrow, column))


def _type(schema: pa.Schema, name: str) -> pa.DataType:
    """Of a column; of a dictionary's, that of its values."""
    kind = schema.field(name).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
