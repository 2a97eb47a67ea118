"""Several files that hold one data set: a folder of them, or a pattern, and the split that each name says.

Before it: what a person typed as the source. After it: `tars` and `parquet` read the files.
"""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from greyhound.cache.collection import SPLIT_WORDS
from greyhound.cache.store import PackError

_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class DataFiles:
    """files: at least one. names: as they are called in the pack. whole: what was named, for messages."""

    whole: str
    files: Sequence[Path]
    names: Sequence[str]

    def splits(self) -> list[str]:
        """The split that each name says, "" for none. Raises PackError where only some names say one.

        A name says one if just one of SPLIT_WORDS is a word of it, as in train-000000.tar or val/0.tar.
        They count as `are_splits` says; a single one does not.
        """
        said = [_split(name) for name in self.names]
        if are_splits(said):
            return said
        if len({*said} - {""}) > 1:
            why = f"{self.names[said.index('')]} names none" if "" in said else "none is for training"
            wanted = "expected every file to name one, train among them"
            raise PackError(f"{self.whole} has files named after splits, and {why}; {wanted}: rename them")
        return [""] * len(said)


def are_splits(said: Sequence[str]) -> bool:
    """Whether they count: every one is a split, there are at least two, and one is for training."""
    return "" not in said and len({*said}) > 1 and "train" in said


def below(folder: Path, suffixes: Sequence[str]) -> DataFiles:
    """Every file with one of these endings in a folder, sorted, hidden ones left alone; perhaps none."""
    files = [*folder.glob("*"), *folder.glob("*/*")]  # data/train-0.parquet, train/0.tar
    shown = [file for file in files if file.name.lower().endswith(tuple(suffixes)) and file.is_file()]
    names = {file.relative_to(folder).as_posix(): file for file in shown}
    seen = sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
    return DataFiles(str(folder), [names[name] for name in seen], seen)


def expand(pattern: str) -> DataFiles:
    """The files that a pattern with {000..012}, {a,b}, * or ? means. Raises PackError."""
    files = list(itertools.chain.from_iterable(map(_glob, _expand_braces(pattern))))
    files = list(dict.fromkeys(files))
    if not files:
        raise PackError(f"{pattern} names no file; expected a range that goes up, as {{0..9}}")
    fixed = re.split(r"[*?\[{]", pattern)[0].rpartition("/")[0]
    beside = [file.relative_to(fixed) if fixed and file.is_relative_to(fixed) else file for file in files]
    return DataFiles(pattern, files, [file.as_posix() for file in beside])


def is_pattern(source: str) -> bool:
    """Whether it is no name but a pattern."""
    return bool(re.search(r"[*?\[]|\{.*\}", source))


def _expand_braces(pattern: str) -> Iterator[str]:
    """As a shell does: {008..011} is 008 009 010 011, {train,val} is train val."""
    if not (found := _BRACES.search(pattern)):
        yield pattern
        return
    if numbers := _RANGE.fullmatch(found[1]):
        low, high = numbers[1], numbers[2]
        words = [f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)]
    else:
        words = found[1].split(",")
    for word in words:
        yield from _expand_braces(f"{pattern[: found.start()]}{word}{pattern[found.end() :]}")


def _glob(pattern: str) -> list[Path]:
    """Raises PackError where there is none."""
    found = [Path(name) for name in sorted(glob.glob(pattern))] or [Path(pattern)]  # noqa: PTH207  any root
    if not found[0].is_file():
        raise PackError(f"{pattern} is not there; expected a file that the pattern names")
    return found


def _split(name: str) -> str:
    """The one split that the words of a name say, "" for none or several."""
    words = re.split(r"[^a-z]+", name.lower())
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else ""
