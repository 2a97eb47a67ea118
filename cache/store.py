"""Pack: open, verify, and read the original bytes of image i without a copy.

Before it: a pack file, or the shards of one, that `pack` wrote. After it: `pipelines` decodes and augments.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from greyhound.cache.folds import Fold, deal
from greyhound.cache.index import FAMILY, INDEX, SCHEMA, SPLITS, WEIGHT, PackError
from greyhound.cache.machine import available_cores, available_memory
from greyhound.cache.shards import Excluded, Header, Shard, find

__all__ = ["SCHEMA", "SPLITS", "Excluded", "Header", "Originals", "Pack", "PackError"]

NAMED: Final = 100
"""Corrupt images that a message names."""
FEW: Final = 16
"""Of a pack this many times as large as what is read of it, the rest is left on the disk. A guess."""
HEAVIEST: Final = float(np.finfo(np.float32).max)
"""The most that an image may weigh."""
_NEVER: Final = 0  # the version of its file at which an image was checked: not yet
# What a row may say, by column of the index: its name for people, the least and the most.
_RANGES: Final = {
    "split": ("splits", 0, len(SPLITS) - 1),
    "size": ("widths and heights", 1, np.iinfo(np.int32).max),
    "orientation": ("orientations", 1, 8),
    "mean_luma": ("mean lumas", 0, 256),
    WEIGHT: ("weights", 0, HEAVIEST),
    FAMILY: ("families", -1, np.iinfo(np.int32).max),
}
_ANY: Final = ("", -math.inf, math.inf)

Originals = Literal["mmap", "ram"]


class Pack:
    """An open pack. Owns the mapping of its files; every array is read-only and aligned with their rows.

    labels: int32 `[n]`. sizes: int32 `[n, 2]`, width and height after EXIF rotation; stored_sizes: before it.
    orientations: uint8 `[n]`, EXIF 1..8. mean_lumas: float32 `[n]`, 0..255. crc32s: uint32 `[n]`.
    weights: float32 `[n]`, from 0. families: int32 `[n]`.
    Labels and splits are read and checked when the pack is opened, each other column when it is first used.
    They are then in memory of our own, whatever becomes of the file. A corrupt one raises PackError.
    """

    def __init__(self, path: Path | str, originals: Originals = "mmap", fold: Fold | None = None) -> None:
        """Open without reading the images; `make_resident` reads them. Raises PackError.

        fold: of train and val together; it decides which images are in which of the two.
        """
        self.path, self.originals = Path(path), originals
        self._shards = [Shard(file) for file in find(self.path)]
        _check_together(self._shards)
        self.header = self._shards[0].header
        self._firsts = [0, *itertools.accumulate(map(len, self._shards))]
        self._resident = False
        self._checked = np.zeros(self._firsts[-1], dtype=np.int64)
        self.labels: NDArray[np.int32] = self._column("label")
        self._splits: NDArray[np.int8] = self._column("split")
        self.fold: Fold | None = None
        if fold:
            self._take(fold)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it is its name: another process opens the files itself, which are not this one's there."""
        return Pack, (self.path.absolute(), self.originals, self.fold)

    def _take(self, fold: Fold) -> None:
        """Validate the images of one fold, and train on those of the others. Raises UserError, PackError."""
        rows = np.flatnonzero(self._splits != SPLITS.index("test"))
        families = hashlib.sha256(self.families.tobytes()).hexdigest()
        if fold.families not in ("", families):
            found = f"{self.path} has other groups or twins than when {fold} was trained"
            raise PackError(f"{found}; give it the pack of then, or train into another folder")
        self.fold = replace(fold, families=families)
        dealt = deal(
            self.labels[rows].tolist(),
            self.families[rows].tolist(),
            self.crc32s[rows].tolist(),
            fold.count,
            fold.seed,
        )
        mine = np.array(dealt) == fold.index
        self._splits = self._splits.copy()
        self._splits[rows] = np.where(mine, SPLITS.index("val"), SPLITS.index("train"))
        self.header = replace(self.header, split_by=f"{fold}; before, {self.header.split_by}", empty={})

    @cached_property
    def sizes(self) -> NDArray[np.int32]:
        """Width and height after EXIF rotation."""
        return self._column("size")

    @cached_property
    def stored_sizes(self) -> NDArray[np.int32]:
        """Width and height before EXIF rotation."""
        turned = self.orientations >= 5
        return np.where(turned[:, None], self.sizes[:, ::-1], self.sizes) if turned.any() else self.sizes

    @cached_property
    def orientations(self) -> NDArray[np.uint8]:
        """EXIF orientations."""
        return self._column("orientation")

    @cached_property
    def mean_lumas(self) -> NDArray[np.float32]:
        """Mean of each original's luma."""
        return self._column("mean_luma")

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """How much each image counts in training, beside the others; 1 where nothing was said."""
        return self._column(WEIGHT)

    @cached_property
    def families(self) -> NDArray[np.int32]:
        """The same number for images that stay in one split: of one group, or twins; -1: an image by itself.

        -1 in every pack that was made before families were kept, too.
        """
        return self._column(FAMILY)

    @cached_property
    def crc32s(self) -> NDArray[np.uint32]:
        """Checksum of each image."""
        return self._column("crc32")

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Where in its file each image starts and stops."""
        return self._column("place")

    def _column(self, name: str) -> NDArray[Any]:
        """A column of the index, of all files. Raises PackError."""
        values: NDArray[Any] = np.empty(len(self), INDEX[name])
        for shard, first in zip(self._shards, self._firsts, strict=False):
            part = values[first : first + len(shard)]
            shard.read(name, part)
            if why := self._nonsense(name, part):
                raise PackError(f"{shard.path} is corrupt: {why}; pack the images again")
        values.flags.writeable = False
        return values

    def _nonsense(self, name: str, values: NDArray[Any]) -> str:
        """What a column says that no photograph has, or nothing: a checksum proves no sense."""
        what, least, most = (_RANGES | {"label": ("labels", -1, len(self.classes) - 1)}).get(name, _ANY)
        low, high = values.min(), values.max()
        inside = least <= low and high <= most
        return "" if inside else f"{what} go from {low} to {high}; expected {least} to {most}"

    def make_resident(self, asked: int | None = None) -> None:
        """Bring every image into memory, once, so that no epoch reads the disk.

        asked: images that will be read; of few, in a large pack, each is read when it is needed.

        originals "mmap" touches every page of the shared page cache, unless they are more than fit: then each
        is read when it is needed. "ram" makes a private copy, which memory pressure can swap but not drop.
        """
        _ = self._places, self.crc32s  # here, not in each thread that reads its first image
        fits = self.nbytes <= available_memory()
        few = asked is not None and asked * FEW < len(self)
        if self._resident or not ((fits and not few) or self.originals == "ram"):
            return
        for shard in self._shards:
            shard.version()  # refuses what was cut short
            if self.originals == "ram":
                shard.copy()
            shard.bytes[::4096].max(initial=0)  # a byte of every page
        self._resident = True

    def __len__(self) -> int:
        """Images."""
        return self._firsts[-1]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, index = label."""
        return self.header.classes

    @property
    def files(self) -> list[Path]:
        """The pack's file, or its shards in order."""
        return [shard.path for shard in self._shards]

    @property
    def nbytes(self) -> int:
        """Bytes of all the images."""
        return sum(shard.image_bytes for shard in self._shards)

    def encoded(self, index: int) -> NDArray[np.uint8]:
        """The original bytes of image `index`, a read-only view into the file: nothing is copied.

        Their checksum is compared the first time, and again where the file was written to. Raises PackError.
        """
        if not (self._is_checked(index) or self.is_valid(index)):
            raise self._damage([index])
        return self._raw(index)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as training sees it before it is augmented: upright RGB, uint8 `[height, width, 3]`.

        Raises PackError where there is no such row, or its bytes are corrupt or no longer decode.
        """
        from greyhound.cache.decode import DecodeError, decode, upright

        if not 0 <= index < len(self):
            raise PackError(f"{self.path} has no row {index}; expected 0 to {len(self) - 1}")
        try:
            pixels = decode(self.encoded(index))
        except DecodeError as error:
            what = f"{self.describe(index)} no longer decodes ({error})"
            raise PackError(f"{self.path}: {what}; check the pack: greyhound verify {self.path}") from None
        return upright(pixels, int(self.orientations[index]))

    @contextmanager
    def naming_corrupt(self, ids: NDArray[np.int64]) -> Iterator[None]:
        """If the block meets a corrupt image, name all corrupt ones of the rows `ids`. Raises PackError."""
        try:
            yield
        except PackError as error:
            found = self.corrupt(ids)
            raise self._damage(found) if found else error from None

    def _damage(self, rows: Sequence[int]) -> PackError:
        files = ", ".join(dict.fromkeys(str(self._shards[self._shard(row)].path) for row in rows))
        named = ", ".join(map(self.describe, rows[:NAMED]))
        named += f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        what = f"{named} {'has' if len(rows) == 1 else 'have'} not the bytes that were packed"
        todo = "copy the pack again, or pack the images again; --on-corrupt skip goes on without such images"
        return PackError(f"{files} is corrupt: {what}; {todo}")

    def is_valid(self, index: int) -> bool:
        """Whether image `index` has the checksum that it was packed with."""
        # Before the bytes: what is written meanwhile is of a later version.
        version = self._shards[self._shard(index)].version()
        valid = zlib.crc32(self._raw(index).data) == int(self.crc32s[index])
        self._checked[index] = version if valid else _NEVER
        return valid

    def _is_checked(self, index: int) -> bool:
        """Whether image `index` was found valid, and nobody wrote to its file since. Raises PackError."""
        return bool(self._checked[index] == self._shards[self._shard(index)].version())

    def _raw(self, index: int) -> NDArray[np.uint8]:
        start, stop = self._places[index]
        return self._shards[self._shard(index)].bytes[start:stop]

    def _shard(self, index: int) -> int:
        return bisect_right(self._firsts, index) - 1

    def image_path(self, index: int) -> str:
        """Where image `index` came from, relative to the packed folder. Raises PackError."""
        shard = self._shard(index)
        return self._shards[shard].image_path(int(index) - self._firsts[shard])

    def describe(self, index: int) -> str:
        """Name image `index` for a message."""
        return f"row {index} ({self.image_path(index)!r})"

    def ids(self, split: str) -> NDArray[np.int64]:
        """Rows of one split, ascending: int64 `[n]`. Raises PackError for a split that no pack has."""
        if split not in SPLITS:
            raise PackError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
        return np.flatnonzero(self._splits == SPLITS.index(split))

    def require_classes(self, classes: Sequence[str], whose: str) -> None:
        """Raise PackError unless the pack has just these classes. whose: for the message."""
        if list(self.classes) != list(classes):
            missing = sorted(set(classes) - set(self.classes))
            why = f"{missing[0]!r} is missing, for one" if missing else f"it has {len(self.classes)} classes"
            known = f"{len(classes)}: {', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"
            found = f"has other classes than {whose} was trained on ({why})"
            raise PackError(f"{self.path} {found}; expected those {known}")

    def corrupt(self, ids: NDArray[np.int64] | None = None) -> list[int]:
        """The corrupt rows of `ids`; what was found valid before is not read again. Without `ids`: of all.

        Of all, what the Arrow rows say of them is also compared with the index. Raises PackError.
        """
        for shard in self._shards if ids is None else ():
            shard.check_rows()
        rows = np.arange(len(self)) if ids is None else ids

        def check_rows(some: NDArray[np.int64]) -> list[int]:
            asked = some.tolist() if ids is None else [row for row in some if not self._is_checked(row)]
            return [int(row) for row in asked if not self.is_valid(row)]

        with ThreadPoolExecutor(available_cores()) as pool:
            return list(itertools.chain(*pool.map(check_rows, np.array_split(rows, 8 * available_cores()))))

    def summary(self, thumbnails: bool = True) -> dict[str, Any]:
        """What is in the pack, JSON-able: the run folder's `pack.json`, `info --json` (no thumbnails)."""
        excluded = self.header.excluded
        return {
            "path": str(self.path.resolve()),
            "digest": self.header.digest,
            "seed": self.header.seed,
            "images": len(self),
            "bytes": self.nbytes,
            "classes": list(self.classes),
            "splits": {split: len(self.ids(split)) for split in SPLITS},
            "split_by": self.header.split_by,
            **({"fold": vars(self.fold)} if self.fold else {}),
            "families": len({*self.families.tolist()} - {-1}),
            "weights": [float(self.weights.min()), float(self.weights.max())],
            "notes": list(self.header.notes),
            "excluded": {
                "total": len(excluded),
                "reasons": dict(Counter(row.reason for row in excluded)),
                "images": [vars(row if thumbnails else replace(row, thumbnail=None)) for row in excluded],
            },
            "transcoded": [{"path": path, "reason": reason} for path, reason in self.header.transcoded],
            "relabelled": [{"path": path, "from": a, "to": b} for path, a, b in self.header.relabelled],
            "lost": list(self.header.lost),
            "background": self.header.background,
        }


def _check_together(shards: Sequence[Shard]) -> None:
    """Refuse files that are not the shards of one packing, each in its place. Raises PackError."""
    first = shards[0].header
    for index, shard in enumerate(shards):
        header = shard.header
        if (header.shard, header.shards) != (index, len(shards)):
            what = f"is shard {header.shard} of {header.shards}, and its name says {index} of {len(shards)}"
            wanted = "expected every shard beside the others, under the name that it was packed with"
            raise PackError(f"{shard.path} {what}; {wanted}")
        if (header.digest, header.classes) != (first.digest, first.classes):
            what = f"is of another pack than {shards[0].path.name} beside it"
            raise PackError(f"{shard.path} {what}; copy all shards again, or pack the images again")
