"""A list that lies on disk: a survey of a hundred thousand files holds none of what it found in memory.

Before it: paths, and looks as they come. After it: `rules` and `twins` go through them again, in order or by place.
"""

from __future__ import annotations

import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Generic, Protocol, TypeVar

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

    An item costs eight bytes of memory. Raises OSError.
    """
    starts = array("q")
    with tempfile.TemporaryFile() as file:
        for item in items:
            starts.append(file.tell())
            pickle.dump(item, file)
        yield _Spool(file, starts)


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
