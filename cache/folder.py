"""Class folders and files below an image folder.

Before it: a folder of images, with or without a subfolder a class. After it: `pack` and the survey scan them.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from PIL import Image

from greyhound.cache.scan import FORMATS
from greyhound.cache.store import PackError

NO_LABEL: Final = -1
MAX_CLASSES: Final = 10_000
"""As many as were packed, trained, evaluated and explained in one go (docs/reliability.md)."""


@dataclass(frozen=True)
class Source:
    """One file to pack. path: relative to the packed folder, forward slashes. label: or NO_LABEL."""

    file: Path
    path: str
    label: int


def find_labelled(images: Path) -> tuple[tuple[str, ...], list[Source]]:
    """Class names, sorted without regard to case, and every file below each, then unlabelled images.

    What begins with a dot is hidden, and left alone. A class folder may be a link, but none that leads
    back to `images`; links to folders below are not followed. Raises PackError.
    """
    entries = _list_folder(images)
    folders = sorted(_folders(images, entries), key=lambda folder: (folder.name.casefold(), folder.name))
    if len(folders) < 2:
        found = "1 subfolder" if folders else "no subfolders"
        raise PackError(f"{images} has {found}; expected one a class, at least 2: {images}/CLASS/image.jpg")
    if len(folders) > MAX_CLASSES:
        wanted = f"expected one a class, at most {MAX_CLASSES:,}: put them together into fewer"
        raise PackError(f"{images} has {len(folders):,} subfolders; {wanted}")
    files = [(file, label) for label, folder in enumerate(folders) for file in _files(folder)]
    if not files:
        raise PackError(f"the {len(folders)} subfolders of {images} hold no files; expected images in them")
    files += [(file, NO_LABEL) for file in sorted(entries) if not file.is_dir() and named_as_image(file)]
    sources = [Source(file, _relative(file, images), label) for file, label in files]
    return tuple(_text(folder.name) for folder in folders), sources


def find_unlabelled(images: Path) -> list[Source]:
    """Every file below a folder, without labels; links as in `find_labelled`. Raises PackError."""
    sources = [Source(file, _relative(file, images), NO_LABEL) for file in _all_files(images)]
    if not sources:
        raise PackError(f"{images} holds no files; expected images")
    return sources


def find_images(images: Path) -> Iterator[str]:
    """The path of every file below a folder, sorted, as in `find_labelled`. Raises PackError."""
    for file in _all_files(images):
        if file.parent != images or named_as_image(file):
            yield _relative(file, images)


def find_file(images: Path, path: str) -> Path:
    """The file whose path `_text` writes as `path`."""
    written = path.encode("utf-8", "replace")
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), written)
    file = images / os.fsdecode(raw)
    return file if file.exists() else images / path  # as a person writes it


def check_outside(out: Path, images: Path) -> None:
    """Refuse to write to where the next look at the images would find it. Raises PackError."""
    if out.resolve().is_relative_to(images.resolve()):
        why = "where it would be taken for an image the next time"
        raise PackError(f"--out {out} lies inside {images}, {why}; name a place outside")


def check_writable(place: Path) -> None:
    """Check that a folder can be written to, or made, without making it. Raises OSError."""
    nearest = next(each for each in (place.absolute(), *place.absolute().parents) if each.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass


def _list_folder(images: Path) -> list[Path]:
    if not images.is_dir():
        found = "a file" if images.exists() else "not there"
        raise PackError(f"{images} is {found}; expected a folder of images")
    try:
        return [entry for entry in images.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        _complain(error)


def _complain(error: OSError) -> NoReturn:
    todo = "make it readable, or move it away"
    raise PackError(f"{error.filename} cannot be read ({error.strerror}); {todo}") from None


def _folders(images: Path, entries: Iterable[Path]) -> list[Path]:
    """The folders among the entries of `images`, linked ones too, but none that leads back to it."""
    home = images.resolve()
    return [entry for entry in entries if entry.is_dir() and not home.is_relative_to(entry.resolve())]


def _all_files(images: Path) -> Iterator[Path]:
    """Those that lie in `images`, then those in each of its folders."""
    entries = sorted(_list_folder(images))
    yield from (entry for entry in entries if not entry.is_dir())
    for folder in _folders(images, entries):
        yield from _files(folder)


def _files(folder: Path) -> Iterator[Path]:
    """Every file below, sorted by name, hidden ones and links to folders left alone."""
    for parent, folders, names in os.walk(folder, onerror=_complain):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name)


def named_as_image(file: Path) -> bool:
    """Whether a file's name ends as that of a format that we take."""
    return Image.registered_extensions().get(file.suffix.lower()) in (*FORMATS, "MPO")


def _relative(file: Path, images: Path) -> str:
    return _text(file.relative_to(images).as_posix())


def _text(name: str) -> str:
    r"""A name as valid Unicode: a byte that is no text as \xff, a backslash before such text as \x5c"""
    escaped = re.sub(rb"\\(?=x[0-9a-f]{2})", rb"\\x5c", os.fsencode(name))
    return escaped.decode("utf-8", "backslashreplace")
