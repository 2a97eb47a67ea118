"""Compare our survey with cleanvision on one folder with planted faults: recall, precision and seconds, as a table.

    python tests/contest.py OUT --ours survey.csv --seconds 9.1 12.0

Before it: `planted` made OUT; `greyhound survey OUT/images --out DIR` made survey.csv. Without --ours the survey
is started and timed here. After it: docs/cleanvision.md.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from planted import Planted

from greyhound.cache.cli import run
from greyhound.cache.machine import available_cores, describe_machine
from greyhound.cache.options import read_call
from greyhound.cache.store import PackError
from greyhound.cache.survey.table import read_rows

Flagged = Mapping[str, set[str]]
"""Fault -> the paths that somebody finds it in."""

Contestant = tuple[Flagged, "Cost"]

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


@dataclass(frozen=True)
class Cost:
    """Seconds: on the clock, and of the processors, child processes that have ended among them."""

    wall: float
    processor: float

    def __str__(self) -> str:
        """Both."""
        return f"{self.wall:.1f}, {self.processor:.1f}"

    @staticmethod
    def now() -> Cost:
        """What this process and its children have taken so far."""
        return Cost(time.perf_counter(), sum(os.times()[:4]))

    def since(self, start: Cost) -> Cost:
        """What was taken from `start` to now."""
        return Cost(self.wall - start.wall, self.processor - start.processor)


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
        return f"{recall}, " + (
            f"{self.right / self.flagged:.3f} ({self.right}/{self.flagged})"
            if self.flagged
            else "none flagged"
        )


def read_truth(file: Path) -> list[Planted]:
    """planted.csv. Raises PackError."""
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            return [
                Planted(row["path"], row["fault"], row["kind"], row["of"]) for row in csv.DictReader(stream)
            ]
    except (OSError, KeyError) as error:
        raise PackError(
            f"{file} cannot be read ({error}); make it: python tests/planted.py IMAGES --out OUT"
        ) from None


def ours(survey: Path) -> Flagged:
    """What our survey says."""
    flagged: dict[str, set[str]] = defaultdict(set)
    for row in read_rows(survey):
        for finding in row.findings:
            flagged[finding].add(row.path)
    return flagged


def look(images: Path) -> Contestant:
    """Our survey, made here, and its seconds, Python's start among them. Raises PackError."""
    with tempfile.TemporaryDirectory(prefix="greyhound-") as out:
        started = Cost.now()
        command = [sys.executable, "-m", "cache", "survey", str(images), "--out", out]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        cost = Cost.now().since(started)
        if done.returncode:
            raise PackError(f"the survey failed: {done.stderr.strip()}")
        return ours(Path(out) / "survey.csv"), cost


def theirs(images: Path) -> Contestant:
    """What cleanvision says, with every check that it has, on as many cores as ours; and its seconds. Raises PackError."""
    try:
        from cleanvision import Imagelab
    except ImportError:
        raise PackError("cleanvision is not installed; pip install cleanvision") from None
    started = Cost.now()
    lab = Imagelab(data_path=str(images), verbose=False)
    lab.find_issues(n_jobs=available_cores(), verbose=False)
    cost = Cost.now().since(started)
    flagged: dict[str, set[str]] = {}
    for fault, names in THEIR_NAMES.items():
        rows = lab.issues[[f"is_{name}_issue" for name in names]].any(axis=1)
        flagged[fault] = {Path(path).relative_to(images).as_posix() for path in rows[rows].index}
    return flagged, cost


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
        scores = {
            name: score(truth, fault, flagged.get(fault, set())) for name, (flagged, _) in columns.items()
        }
        lines.append(f"| {fault} | " + " | ".join(map(str, scores.values())) + " |")
        missed += [
            f"{name} missed {fault}: {count_kinds(found.missed)}"
            for name, found in scores.items()
            if found.missed
        ]
    lines.append(
        "| seconds: wall, processors | " + " | ".join(str(cost) for _, cost in columns.values()) + " |"
    )
    return [*lines, "", *missed]


def count_kinds(kinds: Iterable[str]) -> str:
    """How many of each."""
    counts: dict[str, int] = defaultdict(int)
    for kind in kinds:
        counts[kind] += 1
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def main() -> int:
    """Compare what the command line names."""

    def command(
        folder: Path,
        ours_: Path | None = None,
        seconds: tuple[float, float] = (float("nan"), float("nan")),
        alone: bool = False,
    ) -> int:
        """Compare our survey of FOLDER/images with cleanvision's, by FOLDER/planted.csv.

        Args:
            folder: What tests/planted.py made.
            ours_: Our survey.csv, where it is there already.
            seconds: How long it took, on the clock and of the processors.
            alone: Only cleanvision.
        """
        truth, images = read_truth(folder / "planted.csv"), (folder / "images").absolute()
        columns: dict[str, Contestant] = {}
        if not alone:
            columns["Greyhound"] = (ours(ours_), Cost(*seconds)) if ours_ else look(images)
        columns[f"cleanvision {version('cleanvision')}"] = theirs(images)
        count = sum(file.is_file() for file in images.rglob("*"))
        print(f"{count} images; {describe_machine()}\n")
        print("\n".join(tabulate(truth, columns)))
        return 0

    return read_call(command, sys.argv[1:], "python tests/contest.py")()


def version(package: str) -> str:
    """Of an installed package, or that it is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    run(main)
