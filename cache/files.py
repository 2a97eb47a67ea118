"""Files that are replaced whole or not at all, locks on them, and a list that lies on disk.

Before it: whoever has something to write. After it: packs, tables, pages and checkpoints under their names.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import re
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Generic, TypeAlias, TypeVar

from greyhound.cache.errors import UserError

Item = TypeVar("Item")
_FOLDER: Final = ".greyhound-"
_LOCK: Final = "lock"
_SPECIAL: Final = "a device or a pipe"
_unfinished: Final = set[Path]()
"""Temporary files that are being written."""


class WriteError(UserError):
    """A file cannot be written."""


def unwritable(path: Path, error: OSError) -> str:
    """That a file cannot be written, why, and what to do, in words."""
    remedies = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there")
    remedies |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make its folder writable")
    remedy = remedies.get(error.errno or 0, "name another place")
    return f"{path} cannot be written ({error.strerror or error}); {remedy}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`; it takes `path`'s place if the block ends well.

    If it does not (disk full, Ctrl-C, any error), the temporary file is removed and what was at `path` stays.
    The temporary name ends as `path` does, for writers that choose a format by the suffix. Raises OSError.
    """
    if _is_special(path):
        raise OSError(errno.EINVAL, f"it is {_SPECIAL}")
    temporary = _temporary(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _unfinished.add(temporary)
    try:
        yield temporary
        _rename([temporary], [path])
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


@contextmanager
def replacing_all(outs: Sequence[Path]) -> Iterator[list[Path]]:
    """A locked temporary file beside each of `outs`; all are renamed, together, when the block ends well.

    What a killed process left for the same names is removed first. Raises WriteError.
    """
    if special := [out for out in outs if _is_special(out)]:
        raise WriteError(f"{special[0]} is {_SPECIAL}; expected the name of a file")
    temporaries = [_temporary(out) for out in outs]
    _unfinished.update(temporaries)
    with ExitStack() as held:
        try:
            for out, temporary in zip(outs, temporaries, strict=True):
                out.parent.mkdir(parents=True, exist_ok=True)
                _sweep_left([entry for entry in out.parent.iterdir() if intended(entry) == out.name])
                held.enter_context(_held(temporary))
            yield temporaries
            _rename(temporaries, outs)
        except OSError as error:
            renamed = next((place for place, file in enumerate(temporaries) if file.exists()), 0)
            changed = "nothing was changed"
            if renamed:
                changed = f"{renamed} of its {len(outs)} files are new and the others are not: make it again"
            why = error.strerror or error
            raise WriteError(f"{outs[renamed]} cannot be written: {why}; {changed}") from None
        finally:
            for temporary in temporaries:
                with suppress(OSError):
                    temporary.unlink()
            _unfinished.difference_update(temporaries)


def remove_unfinished() -> None:
    """Remove what this process is writing: for where it must end on the spot."""
    for temporary in tuple(_unfinished):  # a thread may be changing it
        if f".{os.getpid()}." in f"{temporary.name}.":  # not what belongs to the process that forked this one
            with suppress(OSError):
                temporary.unlink()


def intended(file: Path) -> str | None:
    """The name that a temporary file was to take; None for any other file."""
    found = re.fullmatch(r"\.(.+?)\.\d+(\.[^.]+)?", file.name)
    name, suffix = (found[1] + (found[2] or ""), found[2] or "") if found else ("", "")
    return name if name and Path(name).suffix == suffix else None  # as `_temporary` names it


def sweep(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Remove the temporary files whose intended name is ours; nobody else may be writing into the folder."""
    for file in list(folder.iterdir()):
        if (name := intended(file)) and is_ours(name):
            file.unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    """Whether it is a device or a pipe, such as /dev/null: as root, a file would take its place."""
    return path.exists() and not (path.is_file() or path.is_dir())


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")


def _rename(temporaries: Sequence[Path], outs: Sequence[Path]) -> None:
    """Flush every file, rename one by one, and flush the folders: it must survive a power cut."""
    for temporary in temporaries:
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
    for temporary, out in zip(temporaries, outs, strict=True):
        temporary.replace(out)
    for folder in {out.parent for out in outs}:
        with suppress(OSError):  # a file system that does not let a folder be flushed
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def folder_beside(out: Path, flag: str = "--out") -> Iterator[Path]:
    """A temporary folder on the disk that `out` is for: TMPDIR may be in memory. Raises WriteError.

    flag: what names `out`, for the message.
    """
    with ExitStack() as held:
        try:
            _sweep_left([each for each in out.absolute().parent.iterdir() if each.name.startswith(_FOLDER)])
            made = tempfile.TemporaryDirectory(prefix=_FOLDER, dir=out.absolute().parent)
            folder = Path(held.enter_context(made))
            held.enter_context(_held(folder / _LOCK))
        except OSError as error:
            why = error.strerror or error
            raise WriteError(f"{out} cannot be written ({why}); name another: {flag}") from None
        yield folder


def _sweep_left(entries: Iterable[Path]) -> None:
    """Remove what no living process holds, on this machine or another; a folder without a lock is new."""
    for entry in entries:
        folder = entry.is_dir()
        with suppress(OSError), (entry / _LOCK if folder else entry).open("rb") as stream:
            _lock(stream)
            shutil.rmtree(entry, ignore_errors=True) if folder else entry.unlink()


@contextmanager
def _held(file: Path) -> Iterator[None]:
    """Make the file, and lock it for as long as the block runs and the process lives. Raises OSError."""
    with file.open("wb") as stream:
        with suppress(OSError):  # a file system without locks
            _lock(stream)
        yield


def _lock(stream: IO[bytes]) -> None:
    """Lock the file until it is closed. Raises OSError where another process has it."""
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


class DiskList(Generic[Item]):
    """Items in a nameless file in TMPDIR's folder. For one thread; close it after use. Raises WriteError."""

    def __init__(self, items: Iterable[Item]) -> None:
        """Write all items."""
        self._starts = array("q")
        with _refusing():
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        try:
            for item in items:
                self._starts.append(self._file.tell())
                with _refusing():
                    pickle.dump(item, self._file)
            with _refusing():
                self._file.flush()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> DiskList[Item]:
        """The list itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, which removes it."""
        with suppress(OSError):  # a full disk, reported before, is met again by what was not written
            self._file.close()

    def __len__(self) -> int:
        """How many items there are."""
        return len(self._starts)

    def __iter__(self) -> Iterator[Item]:
        """All of them, in order; others may be read meanwhile."""
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, place: int, /) -> Item:
        """The one at `place`, from 0."""
        self._file.seek(self._starts[place])
        item: Item = pickle.load(self._file)
        return item


Series: TypeAlias = Sequence[Item] | DiskList[Item]
"""What can be iterated again and again, and read at any place."""


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"cannot be kept in {tempfile.gettempdir()} ({error.strerror or error}), some 2 kB an image"
        todo = "free space there, or name another folder: TMPDIR=FOLDER"
        raise WriteError(f"the list of images {what}; {todo}") from None
