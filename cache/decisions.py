"""What a person decided about each image: decisions.csv, and which files it speaks of today.

Before it: the page that `page` writes, where a person keeps, excludes and relabels. After it: `pack` replays the
decisions. They are keyed by content, so that a file that was renamed since keeps its decision; the path tells equal
copies apart.
"""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from cache.store import PackError

Choice = Literal["keep", "exclude", "relabel"]
CHOICES: Final[tuple[Choice, ...]] = get_args(Choice)
COLUMNS: Final = ("sha256", "path", "class", "decision", "to")
"""Of decisions.csv; beside them it may have the column reason."""
_COMMAND: Final = "python -m cache survey IMAGES --out DIR makes the page that saves them"


@dataclass(frozen=True, slots=True)
class Photograph:
    """A file as it lies in the folder: path relative to it, its class folder's name, the hash of its content."""

    path: str
    label: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person decided about `image`, as it lay then. to: the new class, for relabel. line: where it stands.

    reason: why the machine excludes it, where it is the machine that does and the person let it stand; "" else.
    """

    image: Photograph
    choice: Choice
    to: str = ""
    line: int = 0
    reason: str = ""


def read(file: Path) -> list[Decision]:
    """decisions.csv, each file at most once. Raises PackError."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream, strict=True)
            _check_columns(table.fieldnames, file)
            found = [_decision(row, table.line_num, file) for row in table]
    except OSError as error:
        raise PackError(
            f"{file} cannot be read ({error.strerror}); expected decisions.csv; {_COMMAND}"
        ) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise PackError(f"{file} is no CSV ({error}); expected decisions.csv; {_COMMAND}") from None
    return _once_each(found, file)


def check_classes(decisions: Iterable[Decision], classes: Sequence[str]) -> None:
    """Raise PackError for the first decision that relabels to what is none of `classes`."""
    for decision in decisions:
        if decision.choice == "relabel" and decision.to not in classes:
            raise PackError(
                f"line {decision.line} of the decisions relabels {decision.image.path!r} to {decision.to!r}, which is "
                f"no class folder; expected one of {', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"
            )


def match(
    decisions: Sequence[Decision], images: Sequence[Photograph]
) -> tuple[dict[str, Decision], list[Decision]]:
    """The decision for each path of `images` that has one, and the decisions whose content is not there any more.

    A decision is for the file at its path if that has its content; otherwise for the first file of that content in
    its class that no other decision is for.
    """
    there = {image.path: image.sha256 for image in images}
    found = {
        decision.image.path: decision
        for decision in decisions
        if there.get(decision.image.path) == decision.image.sha256
    }
    spare = _spare(images, found)
    missing = []
    for decision in decisions:
        if decision.image.path in found and found[decision.image.path] is decision:
            continue
        copies = spare.get((decision.image.label, decision.image.sha256))
        if copies:
            found[copies.pop()] = decision
        else:
            missing.append(decision)
    return found, missing


def _spare(images: Iterable[Photograph], taken: Mapping[str, Decision]) -> dict[tuple[str, str], list[str]]:
    """Paths that no decision names, by class and content; the first one last, where `pop` takes it."""
    spare: dict[tuple[str, str], list[str]] = defaultdict(list)
    for image in sorted(images, key=lambda image: image.path, reverse=True):
        if image.sha256 and image.path not in taken:
            spare[image.label, image.sha256].append(image.path)
    return spare


def _check_columns(header: Sequence[str] | None, file: Path) -> None:
    missing = [name for name in COLUMNS if name not in (header or ())]
    if missing:
        found = ", ".join(header or ())[:100] or "no columns"
        raise PackError(
            f"{file} has {found!r} in its first line and lacks {', '.join(missing)}; "
            f"expected decisions.csv with the columns {', '.join(COLUMNS)}"
            + ("; an exclusion list is given as --exclude" if {"path", "reason"} <= set(header or ()) else "")
        )


def _decision(row: Mapping[str, str | None], line: int, file: Path) -> Decision:
    sha256, path, label, choice, to = (row[name] or "" for name in COLUMNS)
    known: dict[str, Choice] = {name: name for name in CHOICES}
    if choice not in known:
        raise PackError(
            f"{file} says {choice!r} in line {line}; expected the decision keep, exclude or relabel"
        )
    if choice == "relabel" and not to:
        raise PackError(f"{file} relabels to nothing in line {line}; expected a class in the column to")
    if not path or not re.fullmatch(r"([0-9a-f]{64})?", sha256):
        what = f"the sha256 {sha256[:80]!r}" if path else "no path"
        raise PackError(f"{file} has {what} in line {line}; expected a path and 64 hexadecimal digits")
    photograph = Photograph(path.replace(os.sep, "/"), label, sha256)
    return Decision(photograph, known[choice], to, line, row.get("reason") or "")


def _once_each(decisions: Iterable[Decision], file: Path) -> list[Decision]:
    """Lists that were joined may say a thing twice, but not two things; a person outranks the machine."""
    first: dict[Photograph, Decision] = {}
    for decision in sorted(decisions, key=lambda decision: bool(decision.reason)):
        known = first.setdefault(decision.image, decision)
        if not decision.reason and (known.choice, known.to) != (decision.choice, decision.to):
            raise PackError(
                f"{file} says {known.choice} in line {known.line} and {decision.choice} in line {decision.line} of "
                f"{decision.image.path!r}; expected one decision a file: delete one of the two lines"
            )
    return sorted(first.values(), key=lambda decision: decision.line)
