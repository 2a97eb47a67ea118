"""WebDataset: samples in tar files, one member an image and another its class; each is read where it lies.

Before it: tar files. After it: a `Collection` of parts of them. Nothing is unpacked. A sample is the
members of a tar whose names are alike up to the first dot after the folder; they need not be adjacent.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from greyhound.cache.collection import Collection, Collector
from greyhound.cache.data_files import DataFiles
from greyhound.cache.errors import one_line
from greyhound.cache.folder import as_text, named_as_image
from greyhound.cache.manifest import LABELS
from greyhound.cache.place import ByteRange
from greyhound.cache.store import PackError

COMPRESSED: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
SUFFIXES: Final = (".tar", *COMPRESSED)
FIELDS: Final = (*LABELS, "cls")
"""Where the class may stand in a sample's .json, unless --label names another; the first that is there."""
_KEY: Final = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
"""As webdataset's `base_plus_ext`: the folder and the base name up to its first dot; and the rest."""
_OF_TAR: Final = re.compile(r"__[^/]*__($|/)")
"""What webdataset keeps of a tar itself."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_LONG: Final = 1 << 20
"""Bytes of a class or a JSON object that are read."""

Members = dict[str, ByteRange]
"""Extension in lower case -> where it lies."""


def read(data: DataFiles, label: str = "") -> Collection:
    """Every sample of tar files. label: the field of a .json that has its class. Raises PackError."""
    splits, notes = data.splits(), list[str]()
    images, unused = Collector(data.whole), Counter[str]()
    for file, name, split in zip(data.files, data.names, splits, strict=True):
        try:
            with file.open("rb") as stream:
                _read_one(stream, file, as_text(name), split, label, images, unused)
        except (tarfile.TarError, OSError, ValueError) as error:
            what = f"{file} is no whole tar ({one_line(error)})"
            raise PackError(f"{what}; expected one that is not compressed: copy or write it again") from None
    said = ", ".join(f"{kind} ({count:,})" for kind, count in unused.most_common(10))
    notes += [f"members that are not used: {said}"] if said else []
    return images.collect(notes, "as the files say")


def _read_one(
    stream: IO[bytes], file: Path, name: str, split: str, label: str, images: Collector, unused: Counter[str]
) -> None:
    """Add the samples of one tar. Raises PackError, and what tarfile raises."""
    samples, twice = defaultdict[str, Members](dict), dict[str, str]()
    for member in _members(stream, file, unused):
        if not (found := _KEY.fullmatch(member.name)):
            unused["hidden, or named without an ending"] += 1
        elif samples[found[1]].setdefault(found[2].lower(), member) is not member:
            twice[found[1]] = found[2]
    for key, sample in samples.items():
        pictures = _pictures(sample)
        content = _content(sample, stream)
        kind, why = _class(sample, label, content, stream)
        unused.update(f".{each}" for each in sample if each not in (*pictures, "cls", "json"))
        member = sample[pictures[0]] if pictures else next(iter(sample.values()))
        path = f"{name}/{member.name if pictures else key}"
        if key in twice:
            images.leave_out(member, path, kind, "duplicate path", f"its .{twice[key]} is twice in the tar")
        elif len(pictures) != 1:
            several = ", ".join(f".{each}" for each in pictures)
            reason = "several images" if pictures else "no image"
            images.leave_out(member, path, kind, reason, several or "its sample has none")
        elif not kind:
            images.leave_out(member, path, "", "no label", why)
        else:
            said, group = (_text((content or {}).get(each)) for each in ("split", "group"))
            images.add(member, path, kind, said or split, group or "", where="its .json")


def _members(stream: IO[bytes], file: Path, unused: Counter[str]) -> Iterator[ByteRange]:
    """Every file in a tar. Raises what tarfile raises, and ReadError for one that ends early or goes on."""
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        while member := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # a million of them take a gigabyte
            if member.isdir() or _OF_TAR.match(member.name):
                continue
            if member.isreg() and not member.issparse():
                yield ByteRange(file, member.offset_data, member.size, as_text(member.name))
            else:
                unused["links and the like"] += 1
        stream.seek(tar.offset)  # where tarfile stops without a word, also at a header that is damaged
        if len(end := stream.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it ends early")
        while end:
            if end.strip(b"\0"):
                raise tarfile.ReadError(f"what stands at byte {tar.offset:,} is none of its members")
            end = stream.read(_LONG)


def _pictures(sample: Members) -> list[str]:
    """The extensions that are of images; of .jpg and .seg.png the one without a dot in it."""
    found = [kind for kind, member in sample.items() if named_as_image(member)]
    return [kind for kind in found if "." not in kind] or found


def _content(sample: Members, stream: IO[bytes]) -> dict[str, Any] | None:
    """What a sample's .json says, nothing without one; None where it is no JSON object."""
    try:
        content = json.loads(_read(sample["json"], stream)) if "json" in sample else {}
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _class(sample: Members, label: str, content: dict[str, Any] | None, stream: IO[bytes]) -> tuple[str, str]:
    """What a sample's .cls says, or a field of its .json; or "" and why there is none."""
    if "cls" in sample and not label:
        try:
            text = _read(sample["cls"], stream).decode().strip()
        except UnicodeError:
            return "", "its .cls is no text"
        return ("", "its .cls is no line of text") if _CONTROL.search(text) else (text, "its .cls is empty")
    if "json" not in sample:
        neither = "it has neither .cls nor .json; unpack a tar of class folders"
        return "", "it has no .json" if label else neither
    if content is None:
        return "", "its .json is no JSON object"
    fields = (label,) if label else FIELDS
    found = next((_text(content[name]) for name in fields if name in content), None)
    if found is None:
        return "", f"its .json has no text or whole number as {' or '.join(fields)}"
    return found, "its label is empty"


def _text(value: Any) -> str | None:
    """Text or a whole number as text, None for anything else."""
    return str(value).strip() if isinstance(value, str) or type(value) is int else None


def _read(member: ByteRange, stream: IO[bytes]) -> bytes:
    stream.seek(member.start)
    return stream.read(min(member.size, _LONG))
