"""One pack in several files: how its shards are called, which there are, and how the images are divided over them.

Before it: the name of a pack, dogs.arrow. After it: `pack` writes and `store` opens dogs-00000-of-00004.arrow and the
others, as one.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Final

from greyhound.cache.errors import UserError

_SHARD: Final = re.compile(r"(?P<pack>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})")
MAX_SHARDS: Final = 99_999


class ShardsError(UserError):
    """The files of a pack are not those that were expected; the message is one line for the user."""


def shard_paths(pack: Path, count: int) -> list[Path]:
    """The files of a pack in so many shards; one is the pack itself."""
    if count == 1:
        return [pack]
    return [pack.with_name(f"{pack.stem}-{index:05d}-of-{count:05d}{pack.suffix}") for index in range(count)]


def find(pack: Path) -> list[Path]:
    """The files of the pack that is there: itself, or its shards in order, by the pack's name or by one of theirs.

    Raises ShardsError where some are missing, or two packs have the name.
    """
    named = _SHARD.fullmatch(pack.stem)
    if pack.exists() and not named:
        return [pack]
    whole = pack.with_name(f"{named['pack']}{pack.suffix}") if named else pack
    counts = counts_beside(whole)
    if not counts:
        return [pack]
    if len(counts) > 1:
        raise ShardsError(
            f"{whole} is there in {counts[0]} shards and in {counts[1]}; expected one pack of the name: remove the other"
        )
    paths = shard_paths(whole, counts[0])
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ShardsError(
            f"{whole} has {len(missing)} of its {len(paths)} shards missing, the first {missing[0].name}; copy the pack "
            "again, or pack the images again"
        )
    return paths


def counts_beside(pack: Path) -> list[int]:
    """Of how many shards those are that have the pack's name, ascending."""
    if not pack.parent.is_dir():
        return []
    matches = (_SHARD.fullmatch(file.stem) for file in pack.parent.iterdir() if file.suffix == pack.suffix)
    return sorted({int(found["count"]) for found in matches if found and found["pack"] == pack.stem})


def check_name_free(pack: Path, count: int) -> None:
    """Refuse to write a pack beside one of the same name in another number of files. Raises ShardsError."""
    if _SHARD.fullmatch(pack.stem):
        raise ShardsError(f"{pack} is named as a shard is; name the whole pack, and say --shards")
    there = [other for other in counts_beside(pack) if other != count]
    if pack.exists() and count > 1:
        there.append(1)
    if there:
        raise ShardsError(
            f"{pack} is there in another number of files, {there[0]}; remove them first, or name another pack: --out"
        )


def divide(images: int, shards: int) -> list[tuple[int, int]]:
    """Cut so many rows into shards of equal numbers of images, but for one. Raises ShardsError."""
    if not 1 <= shards <= min(images, MAX_SHARDS):
        raise ShardsError(
            f"shards is {shards}; expected 1 to {min(images, MAX_SHARDS)}, at least an image in each"
        )
    return list(itertools.pairwise(images * index // shards for index in range(shards + 1)))
