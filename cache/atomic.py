"""A file, or the files of one pack, are replaced whole or not at all.

Before it: whoever has something to write. After it: packs, tables and pages under their names. What a process that was
killed left under a temporary name, a file or a folder, is swept by the next one that writes there.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from greyhound.cache.store import PackError

try:
    import fcntl
except ImportError:  # Windows, where nothing is swept
    fcntl = None  # type: ignore[assignment]


_FOLDER: Final = ".review-"
_LOCK: Final = "lock"


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A temporary file beside `out` that takes its place when the block ends well, and is gone otherwise."""
    with replacing_all([out]) as (temporary,):
        yield temporary


@contextmanager
def replacing_all(outs: Sequence[Path]) -> Iterator[list[Path]]:
    """A temporary file beside each of `outs`, for the block to write; when it ends well all are renamed, one by one.

    No file is renamed before all are on the disk. Raises PackError.
    """
    temporaries = [out.with_name(f".{out.name}.{os.getpid()}.tmp") for out in outs]
    renamed = 0
    with ExitStack() as held:
        try:
            for out, temporary in zip(outs, temporaries, strict=True):
                out.parent.mkdir(parents=True, exist_ok=True)
                sweep(out)
                held.enter_context(_held(temporary))
            yield temporaries
            for temporary in temporaries:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            for out, temporary in zip(outs, temporaries, strict=True):
                temporary.replace(out)
                renamed += 1
            for folder in {out.parent for out in outs}:
                _flush_folder(folder)
        except OSError as error:
            changed = (
                f"{renamed} of its {len(outs)} files are new and the others are not: make it again"
                if renamed
                else "nothing was changed"
            )
            raise PackError(
                f"{outs[renamed]} cannot be written: {error.strerror or error}; {changed}"
            ) from None
        finally:
            for temporary in temporaries:
                with suppress(OSError):
                    temporary.unlink()


def _flush_folder(folder: Path) -> None:
    """Make the renaming itself survive a power cut, where the system lets a folder be opened and written through."""
    if os.name != "posix":
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """A folder for as long as the block runs, on the disk that `out` is for: TMPDIR may be in memory. Raises PackError."""
    with ExitStack() as held:
        try:
            _sweep_folders(out.absolute().parent)
            made = tempfile.TemporaryDirectory(prefix=_FOLDER, dir=out.absolute().parent)
            folder = Path(held.enter_context(made))
            held.enter_context(_held(folder / _LOCK))
        except OSError as error:
            raise PackError(
                f"{out} cannot be written ({error.strerror or error}); name another: --out"
            ) from None
        yield folder


def _sweep_folders(place: Path) -> None:
    """Remove the folders of `folder_beside` that no living process holds; one without a lock is being made."""
    if fcntl is None:
        return
    for folder in [entry for entry in place.iterdir() if entry.name.startswith(_FOLDER)]:
        with suppress(OSError), (folder / _LOCK).open("rb") as stream:
            _lock(stream)
            shutil.rmtree(folder, ignore_errors=True)


def sweep(out: Path) -> None:
    """Remove the temporary files for `out` that no living process holds, on this machine or another."""
    if fcntl is None:
        return
    ours = re.compile(rf"\.{re.escape(out.name)}\.\d+\.tmp")
    for file in [entry for entry in out.parent.iterdir() if ours.fullmatch(entry.name)]:
        with suppress(OSError), file.open("rb") as stream:
            _lock(stream)
            file.unlink()


@contextmanager
def _held(file: Path) -> Iterator[None]:
    """Make the file; `sweep` leaves it for as long as the block runs and the process lives. Raises OSError."""
    if fcntl is None:
        yield
        return
    with file.open("wb") as stream:
        with suppress(OSError):  # a file system without locks
            _lock(stream)
        yield


def _lock(stream: IO[bytes]) -> None:
    """Take the file until it is closed. Raises OSError where another process has it."""
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
