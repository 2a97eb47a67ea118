"""Compare our survey with cleanvision on one folder with planted faults: recall, precision and seconds, as a table.

    python tests/contest.py OUT

Before it: `planted` made OUT. After it: docs/benchmarks.md.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from planted import Planted

from greyhound.cache.cli import run
from greyhound.cache.machine import available_cores, describe_machine, installed
from greyhound.cache.options import read_call
from greyhound.cache.store import PackError
from greyhound.cache.survey.table import read_rows

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
    """What this process and its children have taken so far."""
    return time.perf_counter(), sum(os.times()[:4])


def since(start: Cost) -> Cost:
    """What was taken from `start` to now."""
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


def read_truth(file: Path) -> list[Planted]:
    """planted.csv. Raises PackError."""
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            return [Planted(**row) for row in csv.DictReader(stream)]
    except (OSError, TypeError) as error:
        make = "python tests/planted.py IMAGES --out OUT"
        raise PackError(f"{file} cannot be read ({error}); make it: {make}") from None


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
        for row in read_rows(Path(out) / "survey.csv"):
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
    """Compare what the command line names."""

    def command(folder: Path) -> int:
        """Compare our survey of FOLDER/images with cleanvision's, by FOLDER/planted.csv.

        Args:
            folder: What tests/planted.py made.
        """
        truth, images = read_truth(folder / "planted.csv"), (folder / "images").absolute()
        columns = {"Greyhound": look(images), "cleanvision": theirs(images)}
        count = sum(file.is_file() for file in images.rglob("*"))
        print(f"{count} images; {describe_machine()}; {installed('cleanvision')}\n")
        print("\n".join(tabulate(truth, columns)))
        return 0

    return read_call(command, sys.argv[1:], "python tests/contest.py")()


if __name__ == "__main__":
    run(main)
