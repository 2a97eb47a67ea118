"""A file is replaced whole or not at all.

Before it: whoever has something to write. After it: checkpoints, JSON, pictures and the report in the run
folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`, for the block to write; it takes `path`'s place if the block
    ends well.

    If it does not (disk full, Ctrl-C, any error), the temporary file is removed, what was at `path` stays,
    and the error goes on. The temporary name ends as `path` does, for writers that choose a format by the
    suffix; `path`'s folder is made if it is missing. Raises OSError.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def intended(file: Path) -> str | None:
    """The name that a temporary file was to take, before its process was killed; else None."""
    found = re.fullmatch(r"\.(.+)\.\d+(\.\w+)", file.name)
    return found[1] + found[2] if found else None


def sweep(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Remove what killed processes left of our files. Nobody else may be writing into the folder."""
    for file in list(folder.iterdir()):
        if (name := intended(file)) and is_ours(name):
            file.unlink(missing_ok=True)


def _flush(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the renaming itself survive a power cut, where the system lets a folder be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
