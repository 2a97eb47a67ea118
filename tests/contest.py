"""Compare our survey with cleanvision on one folder with planted faults: recall, precision and seconds, as a table.

    python tests/contest.py IMAGES OUT

Before it: `greyhound demo IMAGES`, of which only the images without a fault of their own are taken, or any folder
of photographs. After it: docs/benchmarks.md.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from greyhound.cache.cli import run
from greyhound.cache.folder import named_as_image
from greyhound.cache.machine import available_cores, describe_machine, installed
from greyhound.cache.options import read_call
from greyhound.cache.store import PackError
from greyhound.cache.survey.table import Rows

Picture = Image.Image


@dataclass(frozen=True)
class Planted:
    """One fault. path, of: relative to the folder. of: the original, for duplicates."""

    path: str
    fault: str
    kind: str
    of: str = ""


def blur(picture: Picture, share: int) -> Picture:
    """Out of focus, by one part in `share` of the short side."""
    return picture.filter(ImageFilter.GaussianBlur(min(picture.size) / share))


def enlarge(picture: Picture) -> Picture:
    """A poster: the picture six times across and down, so that it is as sharp as it was."""
    return Image.fromarray(np.tile(np.asarray(picture), (6, 6, 1)))


def cut_strip(picture: Picture) -> Picture:
    """A strip from the middle, seven times as wide as it is high."""
    high = picture.width // 7
    top = (picture.height - high) // 2
    return picture.crop((0, top, picture.width, top + high))


def crop(picture: Picture) -> Picture:
    """3 % off every side."""
    across, down = round(picture.width * 0.03), round(picture.height * 0.03)
    return picture.crop((across, down, picture.width - across, picture.height - down))


CHANGED: Final[dict[str, dict[str, Callable[[Picture], Picture]]]] = {
    "dark": {"a tenth of the light": lambda picture: picture.point(lambda level: level * 0.1)},
    "bright": {
        "nine tenths to white": lambda picture: picture.point(lambda level: 255 - (255 - level) * 0.1),
        "five times the light": lambda picture: picture.point(lambda level: level * 5),
    },
    "blurred": {"by a thirtieth": lambda picture: blur(picture, 30), "by a tenth": lambda p: blur(p, 10)},
    "grayscale": {
        "one channel": lambda picture: picture.convert("L"),
        "three equal channels": lambda picture: picture.convert("L").convert("RGB"),
    },
    "odd-size": {
        "a twelfth": lambda picture: picture.resize((picture.width // 12, picture.height // 12)),
        "six by six": enlarge,
        "a strip of 7 : 1": cut_strip,
    },
}
COPIED: Final[dict[str, Callable[[Picture], Picture]]] = {
    "re-encoded": lambda picture: picture,
    "resized": lambda picture: picture.resize((round(picture.width * 0.7), round(picture.height * 0.7))),
    "cropped": crop,
    "mirrored": ImageOps.mirror,
}


def plant(source: Path, images: Path, each: int = 12, seed: int = 0) -> list[Planted]:
    """Copy the images of `source` and plant `each` of every fault, in images that carry no other. Raises PackError."""
    clean = find_clean(source)
    wanted = 2 * each * (len(CHANGED) + 2)
    if len(clean) < wanted:
        count = f"{len(clean)} images without a fault"
        raise PackError(f"{source} has {count}; expected at least {wanted} for {each} of each")
    for path in clean:
        (images / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, images / path)
    chosen = iter(np.random.default_rng(seed).permutation(clean).tolist())
    return [*change(images, chosen, each), *copy(images, chosen, each)]


def find_clean(source: Path) -> list[str]:
    """The images of a folder; of a demo set those in which nothing is planted, and of which there is no copy."""
    truth = source / "truth.csv"
    rows = list(csv.DictReader(truth.open(encoding="utf-8"))) if truth.exists() else []
    marred = {name for row in rows if row["fault"] for name in (row["path"], row["of"])}
    files = sorted(file for file in source.rglob("*") if named_as_image(file))
    return [path for path in (file.relative_to(source).as_posix() for file in files) if path not in marred]


def change(images: Path, chosen: Iterator[str], each: int) -> Iterator[Planted]:
    for fault, kinds in CHANGED.items():
        for number in range(each):
            kind = list(kinds)[number % len(kinds)]
            path = next(chosen)
            with Image.open(images / path) as picture:
                changed = kinds[kind](picture.convert("RGB"))
            changed.save(images / path, "JPEG", quality=90)
            yield Planted(path, fault, kind)


def copy(images: Path, chosen: Iterator[str], each: int) -> Iterator[Planted]:
    """Put copies beside images, every other one into the folder of another image."""
    folders = sorted({file.parent for file in images.rglob("*") if file.is_file()})
    for fault in ("exact", "near"):
        for number in range(each):
            original = next(chosen)
            place = (images / original).parent if number % 2 else folders[number % len(folders)]
            copied, kind = place / f"{fault}_{number:03}.jpg", "the same bytes"
            if fault == "exact":
                shutil.copyfile(images / original, copied)
            else:
                kind = list(COPIED)[number % len(COPIED)]
                with Image.open(images / original) as picture:
                    COPIED[kind](picture.convert("RGB")).save(copied, "JPEG", quality=80)
            yield Planted(copied.relative_to(images).as_posix(), f"{fault}-duplicate", kind, original)


Flagged = Mapping[str, set[str]]
"""Fault -> the paths that somebody finds it in."""
Cost = tuple[float, float]
"""Seconds: on the clock, and of the processors, child processes that have ended among them."""
Contestant = tuple[Flagged, Cost]
"""Fault -> the paths that somebody finds it in."""


THEIR_NAMES: Final = {
    "dark": ("dark",),
    "bright": ("light",),
    "blurred": ("blurry",),
    "grayscale": ("grayscale",),
    "odd-size": ("odd_size", "odd_aspect_ratio"),
    "exact-duplicate": ("exact_duplicates",),
    "near-duplicate": ("near_duplicates",),
}
"""Our findings, and what cleanvision calls them; of ours, odd-size is of aspect ratios too."""


def cost() -> Cost:
    return time.perf_counter(), sum(os.times()[:4])


def since(start: Cost) -> Cost:
    wall, processor = cost()
    return wall - start[0], processor - start[1]


@dataclass(frozen=True)
class Score:
    """Of one fault. found: of the `planted` images those that were flagged; right: of the `flagged` ones."""

    planted: int
    found: int
    flagged: int
    right: int
    missed: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Recall and precision, each with its count."""
        recall = f"{self.found / self.planted:.3f} ({self.found}/{self.planted})"
        if not self.flagged:
            return f"{recall}, none flagged"
        return f"{recall}, {self.right / self.flagged:.3f} ({self.right}/{self.flagged})"


def look(images: Path) -> Contestant:
    """Our survey and its seconds, Python's start among them. Raises PackError."""
    flagged: dict[str, set[str]] = defaultdict(set)
    with tempfile.TemporaryDirectory(prefix="greyhound-") as out:
        started = cost()
        command = [sys.executable, "-m", "cache", "survey", str(images), "--out", out]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        taken = since(started)
        if done.returncode:
            raise PackError(f"the survey failed: {done.stderr.strip()}")
        for row in Rows(Path(out) / "survey.csv"):
            for finding in row.findings:
                flagged[finding].add(row.path)
    return flagged, taken


def theirs(images: Path) -> Contestant:
    """What cleanvision says, with every check that it has, on as many cores as ours; and its seconds. Raises PackError."""
    try:
        from cleanvision import Imagelab
    except ImportError:
        raise PackError("cleanvision is not installed; pip install cleanvision") from None
    started = cost()
    lab = Imagelab(data_path=str(images), verbose=False)
    lab.find_issues(n_jobs=available_cores(), verbose=False)
    taken = since(started)
    flagged: dict[str, set[str]] = {}
    for fault, names in THEIR_NAMES.items():
        rows = lab.issues[[f"is_{name}_issue" for name in names]].any(axis=1)
        flagged[fault] = {Path(path).relative_to(images).as_posix() for path in rows[rows].index}
    return flagged, taken


def score(truth: Iterable[Planted], fault: str, flagged: set[str]) -> Score:
    """Recall and precision for one fault.

    A pair of duplicates is found when either of the two is flagged, and both are right: whoever lists both and
    whoever names the second alone say the same.
    """
    planted = [row for row in truth if row.fault == fault]
    right = {path for row in planted for path in (row.path, row.of) if path}
    missed = tuple(row.kind for row in planted if not flagged & {row.path, row.of})
    return Score(len(planted), len(planted) - len(missed), len(flagged), len(flagged & right), missed)


def tabulate(truth: list[Planted], columns: Mapping[str, Contestant]) -> list[str]:
    """A Markdown table: a row a fault, recall and precision of each contestant; then the seconds, and what was missed."""
    lines = ["| fault | " + " | ".join(f"{name}: recall, precision" for name in columns) + " |"]
    lines.append("|" + "---|" * (len(columns) + 1))
    missed = []
    for fault in THEIR_NAMES:
        cells = ""
        for name, (flagged, _) in columns.items():
            found = score(truth, fault, flagged.get(fault, set()))
            cells += f" {found} |"
            if found.missed:
                kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(found.missed).items())
                missed.append(f"{name} missed {fault}: {kinds}")
        lines.append(f"| {fault} |{cells}")
    seconds = " | ".join(f"{wall:.1f}, {processor:.1f}" for _, (wall, processor) in columns.values())
    return [*lines, f"| seconds: wall, processors | {seconds} |", "", *missed]


def main() -> int:

    def command(source: Path, out: Path, each: int = 12, seed: int = 0) -> int:
        """Compare our survey with cleanvision's, of copies of the images of SOURCE, below OUT, with planted faults.

        Args:
            source: A folder of images, such as a demo set.
            out: A new folder.
            each: Of every fault.
            seed: Other images.
        """
        if out.exists():
            raise PackError(f"{out} is there already; name a new folder")
        images = out.absolute()
        truth = plant(source, images, each, seed)
        columns = {"Greyhound": look(images), "cleanvision": theirs(images)}
        count = sum(file.is_file() for file in images.rglob("*"))
        print(f"{count} images; {describe_machine()}; {installed('cleanvision')}\n")
        print("\n".join(tabulate(truth, columns)))
        return 0

    return read_call(command, sys.argv[1:], "python tests/contest.py")()


if __name__ == "__main__":
    run(main)
