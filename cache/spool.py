"""A list that lies on disk: a survey of a hundred thousand files holds none of what it found in memory.

Before it: paths, and looks as they come. After it: `rules` and `twins` go through them again, in order or by place.
"""

from __future__ import annotations

import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Generic, Protocol, TypeVar

from greyhound.cache.scan import ScanError

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)


class Series(Protocol[Item_co]):
    """What can be gone through again and again, and read at any place: a list, or a spool."""

    def __len__(self) -> int:
        """How many there are."""

    def __iter__(self) -> Iterator[Item_co]:
        """All of them, in order."""

    def __getitem__(self, place: int, /) -> Item_co:
        """The one at `place`, from 0."""


@contextmanager
def spool(items: Iterable[Item]) -> Iterator[Series[Item]]:
    """The items in a file without a name, in the folder that TMPDIR says, for as long as the block runs; for one thread.

    An item costs eight bytes of memory. Raises SurveyError where that folder is full or cannot be written to.
    """
    with _refusing():
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    try:
        yield _fill(file, items)
    finally:
        with suppress(OSError):  # a full disk, said before, is met again by what was not written
            file.close()


def _fill(file: IO[bytes], items: Iterable[Item]) -> Series[Item]:
    starts = array("q")
    for item in items:
        starts.append(file.tell())
        with _refusing():
            pickle.dump(item, file)
    with _refusing():
        file.flush()
    return _Spool(file, starts)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ScanError(
            f"what was seen of the images cannot be kept in {tempfile.gettempdir()} ({error.strerror or error}), some "
            "2 kB an image; free space there, or name another folder: TMPDIR=FOLDER"
        ) from None


@dataclass(frozen=True)
class _Spool(Generic[Item]):
    """Items in a file, and where each of them starts."""

    file: IO[bytes]
    starts: array[int]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.starts)

    def __iter__(self) -> Iterator[Item]:
        """All of them, in order; others may be read meanwhile."""
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, place: int, /) -> Item:
        """The one at `place`, from 0."""
        self.file.seek(self.starts[place])
        item: Item = pickle.load(self.file)
        return item
